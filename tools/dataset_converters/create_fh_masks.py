"""Make Felzenszwalb-Huttenlocher label maps of images, for R-MAE.

IMAGES is a folder, searched at any depth, or a zip archive. OUT gets one
compact PNG an image, in a tree that mirrors IMAGES. COCO is segmented at three
scales (the default), ImageNet at one (--scales 1000).

A run that was stopped, by whatever, is continued by the same command. Several
machines share the work as shards: in a Slurm array of N tasks from 0,
--shard $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT. The settings are kept in
OUT, and other ones refused there.
"""

import signal

# Ctrl-C while the imports take their seconds: end, without a traceback.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import sys

from ropim_mm.datasets.fh_masks import (
    FHSettings,
    create_maps,
    verify_maps,
)
from ropim_mm.evaluation.conversion_command import (
    add_run_arguments,
    run,
)


def numbers(text: str) -> tuple[float, ...]:
    values = (float(part) for part in text.split(','))
    return tuple(int(v) if v.is_integer() else v for v in values)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('images', help='folder or zip archive of images')
    parser.add_argument('out', help='folder for the label maps')
    parser.add_argument(
        '--scales',
        type=numbers,
        metavar='S,S,...',
        help='one a map; larger ones give larger segments (default: those '
        'that OUT was begun with, else 500,1000,1500)',
    )
    parser.add_argument(
        '--min-sizes',
        type=numbers,
        metavar='N,N,...',
        help='smallest segment of each map in pixels (default: as --scales)',
    )
    parser.add_argument(
        '--sigma',
        type=float,
        help='of the Gaussian that smooths images first, in pixels '
        '(default: 0.8)',
    )
    add_run_arguments(parser, 'maps', 'has maps that can be read and fit it')
    return parser.parse_args()


def chosen_settings(args: argparse.Namespace) -> FHSettings | None:
    """None where the command line names no setting."""
    if (args.scales, args.min_sizes, args.sigma) == (None, None, None):
        return None
    default = FHSettings()
    scales = args.scales or default.scales
    return FHSettings(
        scales,
        args.min_sizes or scales,
        default.sigma if args.sigma is None else args.sigma,
    )


def main() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    args = parse_args()
    sys.exit(
        run(
            args,
            'maps',
            lambda: chosen_settings(args),
            create_maps,
            verify_maps,
            lambda report: (
                f'{report.raw / report.written:.1f} times smaller than raw '
                'uint8 arrays'
            ),
        )
    )


if __name__ == '__main__':
    main()
