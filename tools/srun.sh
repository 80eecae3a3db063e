#!/usr/bin/env bash
# What slurm_train.sh and slurm_test.sh share:
#
#   srun.sh PARTITION JOB_NAME SCRIPT [arguments of SCRIPT]
set -euo pipefail

tools="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
partition="$1"
job_name="$2"
script="$3"
shift 3

GPUS="${GPUS:-8}"
if [[ -z "${GPUS_PER_NODE:-}" ]]; then
    GPUS_PER_NODE=$((GPUS < 8 ? GPUS : 8))
fi
arguments=(
    --partition="$partition"
    --job-name="$job_name"
    --ntasks="$GPUS"
    --cpus-per-task="${CPUS_PER_TASK:-5}"
    # One process that fails ends the job: the others would wait for it.
    --kill-on-bad-exit=1
)
if ((GPUS_PER_NODE > 0)); then
    arguments+=(
        --gres="gpu:$GPUS_PER_NODE"
        --ntasks-per-node="$GPUS_PER_NODE"
    )
fi
read -r -a more <<<"${SRUN_ARGS:-}"

export PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}"
exec srun "${arguments[@]}" "${more[@]}" \
    "${PYTHON:-python}" -u "$tools/$script" "$@" --launcher slurm
