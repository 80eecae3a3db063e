"""Train any config: pretraining, classification, segmentation, detection."""

import argparse
import os

from mmengine.config import DictAction

from ropim_mm.engine import launch
from ropim_mm.engine.distributed import LAUNCHERS, process_group


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--work-dir',
        help='folder for logs and checkpoints; default: work_dir of the '
        'config, or work_dirs/<name of the config>',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='FILE',
        help='continue from FILE; "auto" or nothing: from the latest '
        'checkpoint in the work folder, if there is one',
    )
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision (bfloat16)'
    )
    parser.add_argument(
        '--no-validate',
        action='store_true',
        help='do not validate while training',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='multiply learning rates by the actual batch size / '
        'auto_scale_lr.base_batch_size',
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='read the checkpoints that the command or the config names even '
        'if that runs code from them',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change fields of the config, for instance '
        'train_dataloader.batch_size=64',
    )
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none')
    # torch.distributed.launch, which `mim train` calls, passes this.
    parser.add_argument('--local_rank', '--local-rank', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.local_rank is not None:
        os.environ.setdefault('LOCAL_RANK', args.local_rank)
    return args


def main() -> None:
    args = parse_args()
    with launch.report_errors():
        cfg = launch.load_config(args.config, args.cfg_options)
        dist_cfg = cfg.get('env_cfg', {}).get('dist_cfg')
        with process_group(args.launcher, dist_cfg):
            notes = launch.prepare_train(
                cfg,
                work_dir=args.work_dir,
                resume=args.resume,
                amp=args.amp,
                auto_scale_lr=args.auto_scale_lr,
                validate=not args.no_validate,
                launcher=args.launcher,
                trust=args.trust_checkpoint,
            )
            launch.train(cfg, notes)


if __name__ == '__main__':
    main()
