"""Evaluate a checkpoint: classification, segmentation, detection."""

import argparse
import os

from mmengine.config import DictAction

from ropim_mm.engine import launch
from ropim_mm.engine.distributed import LAUNCHERS, process_group


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--work-dir',
        help='folder for logs; default: work_dir of the config, or '
        'work_dirs/<name of the config>',
    )
    parser.add_argument(
        '--out',
        metavar='FILE',
        help='write the predictions (.pkl) or the metrics (.json, .yaml)',
    )
    parser.add_argument(
        '--out-item',
        choices=['metrics', 'pred'],
        help='what --out holds; default: by its ending',
    )
    parser.add_argument(
        '--show-dir', metavar='DIR', help='draw the predictions into DIR'
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help="average over the config's tta_pipeline by its tta_model",
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
        'test_dataloader.batch_size=64',
    )
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none')
    # torch.distributed.launch, which `mim test` calls, passes this.
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
            launch.prepare_test(
                cfg,
                args.checkpoint,
                work_dir=args.work_dir,
                show_dir=args.show_dir,
                tta=args.tta,
                launcher=args.launcher,
                trust=args.trust_checkpoint,
            )
            launch.test(cfg, args.out, args.out_item)


if __name__ == '__main__':
    main()
