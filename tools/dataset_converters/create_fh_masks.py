"""Make Felzenszwalb-Huttenlocher label maps of images, for R-MAE.

IMAGES is a folder, searched at any depth, or a zip archive. OUT gets one
compact PNG an image, in a tree that mirrors IMAGES. COCO is segmented at three
scales (the default), ImageNet at one (--scales 1000).

A run that was stopped, by whatever, is continued by the same command. Several
machines share the work as shards: in a Slurm array of N tasks from 0,
--shard $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT. The settings are kept in
OUT, and other ones refused there.
"""

import argparse
import sys

from ropim_mm.datasets.fh_masks import (
    FHSettings,
    Report,
    create_maps,
    verify_maps,
)
from ropim_mm.engine.launch import report_errors
from ropim_mm.evaluation.benchmark_machine import usable_cores
from ropim_mm.evaluation.command_line import natural


def numbers(text: str) -> tuple[float, ...]:
    values = (float(part) for part in text.split(','))
    return tuple(int(v) if v.is_integer() else v for v in values)


def shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition('/')
    return int(index), int(count)


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
    parser.add_argument(
        '--workers',
        type=natural,
        default=usable_cores(),
        metavar='N',
        help='processes; 0 works in the main one (default: one a core)',
    )
    parser.add_argument(
        '--shard',
        type=shard,
        default=(0, 1),
        metavar='I/N',
        help='make every N-th map, beginning with the I-th, from 0',
    )
    parser.add_argument(
        '--on-error',
        choices=('raise', 'skip'),
        default='raise',
        help='stop at an image that cannot be read, or leave it out and say '
        'so (default: raise)',
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        '--verify',
        action='store_true',
        help='make nothing; check that every image has maps that can be '
        'read and fit it, list what is missing or broken, and exit with '
        'status 1 if there is anything. Images that cannot be read (as '
        '--on-error skip leaves them out) are listed too, but with nothing '
        'else the status is 0',
    )
    mode.add_argument(
        '--repair',
        action='store_true',
        help='check the maps that are there, and make bad ones again',
    )
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


def show(report: Report, args: argparse.Namespace) -> int:
    """Print what was done; the exit status."""
    for name in report.missing:
        print(f'missing: maps of {name}')
    for name, reason in report.broken:
        print(f'broken: maps of {name}: {reason}')
    for name, reason in report.unreadable:
        print(f'unreadable image: {name}: {reason}')
    if args.verify:
        print(
            f'{report.total} images: maps of {report.done} are in order, '
            f'{len(report.missing)} missing, {len(report.broken)} broken; '
            f'{len(report.unreadable)} images unreadable'
        )
        unreadable = {name for name, _ in report.unreadable}
        broken = {name for name, _ in report.broken}
        if report.missing or broken - unreadable:
            print('--repair in place of --verify makes them')
        if broken & unreadable:
            print(
                f'{len(broken & unreadable)} of the broken maps are of images '
                'that cannot be read: repair the images, or remove both'
            )
        return 1 if report.missing or broken else 0
    print(
        f'{report.total} images: maps of {report.done} made, of '
        f'{report.present} there before; {len(report.unreadable)} images '
        'unreadable'
    )
    if report.done:
        print(
            f'{report.done / report.seconds:.2f} images/s with '
            f'{args.workers} worker(s) in {report.seconds:.1f} s; '
            f'{report.written} bytes, {report.raw / report.written:.1f} '
            'times smaller than raw uint8 arrays'
        )
    return 0


def main() -> None:
    # Names of files may be bytes that are no text.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors='backslashreplace')
    args = parse_args()
    with report_errors():
        settings = chosen_settings(args)
        shared = dict(
            workers=args.workers, shard=args.shard, progress=sys.stderr
        )
        try:
            if args.verify:
                report = verify_maps(args.images, args.out, settings, **shared)
            else:
                report = create_maps(
                    args.images,
                    args.out,
                    settings,
                    on_error=args.on_error,
                    repair=args.repair,
                    **shared,
                )
        except KeyboardInterrupt:
            print(
                'stopped; the same command goes on from here', file=sys.stderr
            )
            sys.exit(130)
    sys.exit(show(report, args))


if __name__ == '__main__':
    main()
