"""Convert a released checkpoint to this project's format.

Pretraining and fine-tuned files are recognised by their names. The whole model
is converted. ConMIM writes two files an epoch, checkpoint-N.pth (student) and
checkpoint_copy-N.pth (its momentum copy): give either, the other one is taken
from beside it. Nothing in the files is executed.
"""

import argparse

from ropim_mm.checkpoints.exporting import LICENCE_NOTICE, convert_official
from ropim_mm.checkpoints.official import CONVERTERS
from ropim_mm.engine.launch import report_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    methods = ', '.join(sorted(CONVERTERS))
    parser.add_argument('method', help=f'whose checkpoint it is: {methods}')
    parser.add_argument('src', help='the released file')
    parser.add_argument('dst', help='the file to write')
    parser.add_argument(
        '--momentum',
        metavar='FILE',
        help="the momentum copy's file, where it is not beside SRC under the "
        'released name',
    )
    parser.add_argument(
        '--force', action='store_true', help='replace DST if it exists'
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='unpickle SRC even if that runs code from it',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with report_errors():
        summary = convert_official(
            args.method,
            args.src,
            args.dst,
            momentum=args.momentum,
            force=args.force,
            trust=args.trust_checkpoint,
        )
    print(summary)
    print(LICENCE_NOTICE)


if __name__ == '__main__':
    main()
