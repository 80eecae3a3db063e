"""Make the images of a dataset smaller once, so that training loads faster.

IMAGES is a folder, searched at any depth, or a zip archive. OUT gets one JPEG
an image, under the same name in the same folders: classes and lists of files
go on to fit. Label maps and annotations do not, which have the size of the
image: make R-MAE's from OUT. The name stays even where it ends in .png;
Pillow, OpenCV and torchvision go by the content. Other files, such as lists,
are not copied.

The short side becomes N pixels by the Lanczos filter; nothing is enlarged. A
JPEG that is small enough and upright is copied as it is. Of all others EXIF
(after turning the image upright), colour profile, transparency and what 16
bits hold beyond 8 are gone, as they are in training.

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
from dataclasses import replace

from ropim_mm.datasets.shrink import (
    SUBSAMPLINGS,
    ShrinkSettings,
    compare_crops,
    shrink_images,
    verify_shrunk,
)
from ropim_mm.evaluation.command_line import positive
from ropim_mm.evaluation.conversion_command import (
    add_run_arguments,
    reporting,
    run,
)


def parse_args() -> argparse.Namespace:
    default = ShrinkSettings()
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('images', help='folder or zip archive of images')
    parser.add_argument('out', help='folder for the smaller images')
    parser.add_argument(
        '--short-side',
        type=int,
        metavar='N',
        help='pixels of the short side, at most (default: that which OUT was '
        f'begun with, else {default.short_side})',
    )
    parser.add_argument(
        '--quality',
        type=int,
        metavar='Q',
        help='of the JPEG, 1 to 100 (default: that which OUT was begun with, '
        f'else {default.quality})',
    )
    parser.add_argument(
        '--subsampling',
        choices=SUBSAMPLINGS,
        help='of the colours in the JPEG (default: that which OUT was begun '
        f'with, else {default.subsampling})',
    )
    mode = add_run_arguments(
        parser,
        'smaller images',
        'has a smaller one, undamaged and of its size',
    )
    mode.add_argument(
        '--compare',
        type=positive,
        metavar='K',
        help='make nothing; say how crops of 0.2 to 1 of the area at 224 px '
        'from K of the smaller images differ from those of the originals',
    )
    args = parser.parse_args()
    if args.compare:
        # What OUT holds is compared, whatever it was made with.
        for name in ('short_side', 'quality', 'subsampling'):
            if getattr(args, name) is not None:
                option = name.replace('_', '-')
                parser.error(f'--compare makes nothing: no --{option} with it')
    return args


def chosen_settings(args: argparse.Namespace) -> ShrinkSettings | None:
    """Those that OUT was begun with, changed as the command line says.

    None where it says nothing. Other ones than OUT's are refused later.
    """
    named = {
        name: value
        for name in ('short_side', 'quality', 'subsampling')
        if (value := getattr(args, name)) is not None
    }
    if not named:
        return None
    begun = ShrinkSettings.of_folder(args.out) or ShrinkSettings()
    return replace(begun, **named)


def compare(args: argparse.Namespace) -> None:
    with reporting():
        found = compare_crops(
            args.images, args.out, args.compare, progress=sys.stderr
        )
    print(
        f'{found.images} images, 3 crops each, 0.2 to 1 of the area at 224 '
        f'px: mean difference {found.mean:.2f} of 255 (below {found.most:.2f} '
        f'in 95 of 100 crops), PSNR {found.psnr:.1f} dB'
    )


def main() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    args = parse_args()
    if args.compare:
        compare(args)
        return
    sys.exit(
        run(
            args,
            'smaller ones',
            lambda: chosen_settings(args),
            shrink_images,
            verify_shrunk,
            lambda report: (
                f'{report.raw / report.written:.2f} times smaller than the '
                'originals'
            ),
        )
    )


if __name__ == '__main__':
    main()
