#!/usr/bin/env bash
# Evaluate by Slurm.
#
#   bash tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of test.py]
#
# From the environment: GPUS (all processes, default 8), GPUS_PER_NODE (at most
# 8 by default; 0 asks for no GPU), CPUS_PER_TASK (default 5), SRUN_ARGS (more
# arguments of srun, split at spaces), PYTHON (the interpreter).
set -euo pipefail

if (($# < 4)); then
    echo "usage: $(sed -n 's/^#   //p' "${BASH_SOURCE[0]}")" >&2
    exit 2
fi
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/srun.sh" \
    "$1" "$2" test.py "${@:3}"
