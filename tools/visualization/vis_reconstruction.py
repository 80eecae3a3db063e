"""Draw what a pretraining method was shown of images and what it predicted.

Per image, the input, what the model was shown, what it predicted and the two
composed, and below that
  ROPIM   what the projection removed, in the same row
  LoMaR   each window
  R-MAE   each region: the map, its visible part, the prediction
  ConMIM  whether masked patches find their place in the other view, and of
          some of them the similarity to all patches of it
Writes OUT/<name>.png for each image and OUT/overview.png.
"""

import argparse

from mmengine.config import DictAction

from ropim_mm.engine import launch
from ropim_mm.engine.distributed import LaunchError
from ropim_mm.visualization import Gallery, find_images, load_model


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='config file of the pretraining')
    parser.add_argument('checkpoint', help='checkpoint that it wrote')
    parser.add_argument(
        'images', help='image file, or folder that is searched at any depth'
    )
    parser.add_argument('out', help='folder for the pictures')
    parser.add_argument(
        '--seed',
        type=int,
        default=0,
        help='another one draws other projections, windows or masks; default: '
        '0',
    )
    parser.add_argument(
        '--device', help='for instance cpu or cuda:1; default: the best'
    )
    parser.add_argument(
        '--max-images',
        type=int,
        default=16,
        metavar='N',
        help='take the first N images of a folder; default: 16',
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='read the checkpoint even if that runs code from it',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change fields of the config, for instance '
        'model.backbone.img_size=448',
    )
    args = parser.parse_args()
    if args.max_images < 1:
        parser.error(f'--max-images is {args.max_images}; expected 1 or more')
    return args


def main() -> None:
    args = parse_args()
    with launch.report_errors():
        cfg = launch.load_config(args.config, args.cfg_options)
        root, files = find_images(args.images, args.out)
        found = len(files)
        files = files[: args.max_images]
        model = load_model(
            cfg, args.checkpoint, args.device, args.trust_checkpoint
        )
        if found > len(files):
            print(f'The first {len(files)} of {found} images (--max-images)')
        gallery = Gallery(model, args.out, args.seed)
        for i, line in enumerate(gallery.draw(root, files), start=1):
            print(f'[{i}/{len(files)}] {line}', flush=True)
        broken = len(gallery.unreadable)
        if not gallery.written:
            raise LaunchError(
                f'none of {len(files)} images could be read, no picture was '
                'written'
            )
        skipped = f', {broken} unreadable images left out' if broken else ''
        print(
            f'{len(gallery.written)} pictures and overview.png in '
            f'{args.out}{skipped}'
        )


if __name__ == '__main__':
    main()
