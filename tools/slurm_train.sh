#!/usr/bin/env bash
# Train by Slurm.
#
#   bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of train.py]
#
# From the environment: GPUS (all processes, default 8), GPUS_PER_NODE (at most
# 8 by default; 0 asks for no GPU), CPUS_PER_TASK (default 5), SRUN_ARGS (more
# arguments of srun, split at spaces), PYTHON (the interpreter).
set -euo pipefail

if (($# < 4)); then
    echo "usage: $(sed -n 's/^#   //p' "${BASH_SOURCE[0]}")" >&2
    exit 2
fi
files=("$3" --work-dir "$4")
partition="$1"
job_name="$2"
shift 4
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/srun.sh" \
    "$partition" "$job_name" train.py "${files[@]}" "$@"
