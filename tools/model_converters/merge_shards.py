"""Write a sharded checkpoint as a plain one.

SRC is a folder that a run with strategy=fsdp and
strategy.checkpoints=sharded wrote (rank0.pth, rank1.pth, ...). DST then holds
what a run of one process would have written: it can be resumed from, tested,
fine-tuned from and converted, with any strategy and any number of processes.
Nothing in the files is executed.
"""

import argparse

from ropim_mm.checkpoints.shards import merge_shards
from ropim_mm.engine.launch import report_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', help='folder of the sharded checkpoint')
    parser.add_argument('dst', help='the file to write')
    parser.add_argument(
        '--no-optimizer',
        action='store_true',
        help='leave out the state of the optimizer: a third of the size, but '
        'no run can be resumed from it',
    )
    parser.add_argument(
        '--force', action='store_true', help='replace DST if it exists'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with report_errors():
        print(
            merge_shards(
                args.src,
                args.dst,
                optimizer=not args.no_optimizer,
                force=args.force,
            )
        )


if __name__ == '__main__':
    main()
