#!/usr/bin/env bash
# Evaluate on the GPUs of one or more machines, or on the CPU where there is
# none.
#
#   bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]
#
# GPUS is the number of processes on this machine. On several machines run the
# same line on each, with NNODES, NODE_RANK (0, 1, ...), MASTER_ADDR (the first
# machine) and PORT in the environment. PYTHON names the interpreter.
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/torchrun.sh" test.py 2 "$@"
