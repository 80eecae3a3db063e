#!/usr/bin/env bash
# What dist_train.sh and dist_test.sh share:
#
#   torchrun.sh SCRIPT N FILE_1 ... FILE_N GPUS [arguments of SCRIPT]
set -euo pipefail

tools="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
script="$1"
count="$2"
shift 2
files=("${@:1:count}")
gpus="${*:count+1:1}"
if ! [[ "$gpus" =~ ^[1-9][0-9]*$ ]]; then
    usage="$(sed -n 's/^#   //p' "$tools/dist_${script%.py}.sh")"
    echo "error: GPUS is '$gpus', expected a number above 0" >&2
    echo "usage: $usage" >&2
    exit 2
fi
shift $((count + 1))

PYTHON="${PYTHON:-python}"
NNODES="${NNODES:-1}"
NODE_RANK="${NODE_RANK:-0}"
MASTER_ADDR="${MASTER_ADDR:-127.0.0.1}"
if [[ -z "${PORT:-}" ]]; then
    if [[ "$NNODES" == 1 ]]; then
        PORT="$("$PYTHON" -c 'import socket
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    print(s.getsockname()[1])')"
    else
        PORT=29500 # all machines must agree
    fi
fi
# The first machine listens. Said here, since torchrun's own words for it are
# two tracebacks.
if [[ "$NODE_RANK" == 0 ]] && ! "$PYTHON" -c 'import socket, sys
with socket.socket() as s:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        s.bind(("", int(sys.argv[1])))
    except OSError:
        sys.exit(1)' "$PORT"; then
    echo "error: port $PORT of this machine is in use, perhaps by another" \
        "run: set PORT to a free one, the same on all machines" >&2
    exit 1
fi

# Works without installation too; no empty entry, which would mean the current
# folder.
export PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m torch.distributed.run \
    --nnodes="$NNODES" \
    --node_rank="$NODE_RANK" \
    --master_addr="$MASTER_ADDR" \
    --master_port="$PORT" \
    --nproc_per_node="$gpus" \
    "$tools/$script" "${files[@]}" --launcher pytorch "$@"
