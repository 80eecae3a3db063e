"""Estimate what a published schedule costs on some numbers of GPUs.

On paper: operations and parameters are counted on the model, batch and length
are those of the config, and the rates are yours to state. The formulas are in
ropim_mm/evaluation/cost.py. The rate (--tflops) is what a GPU reaches in
training: the peak of its matrix products times the share that
benchmark_step.py prints.
"""

import argparse

from mmengine.config import DictAction
from mmengine.logging import MMLogger

from ropim_mm.engine import launch
from ropim_mm.evaluation.command_line import positive
from ropim_mm.evaluation.cost import (
    IMAGENET,
    Rates,
    estimate,
    schedule_of,
    table,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--gpus',
        nargs='+',
        type=positive,
        default=[8, 64],
        metavar='N',
        help='numbers of GPUs; default: 8 64',
    )
    parser.add_argument(
        '--tflops',
        type=float,
        default=300.0,
        help='of one GPU in training; default: 300',
    )
    parser.add_argument(
        '--node-gbs',
        type=float,
        default=150.0,
        help='GB/s that a GPU sends within its machine; default: 150',
    )
    parser.add_argument(
        '--network-gbs',
        type=float,
        default=100.0,
        help='GB/s that a machine sends to others, all network cards '
        'together; default: 100',
    )
    parser.add_argument(
        '--gpus-per-node', type=positive, default=8, metavar='N'
    )
    parser.add_argument(
        '--images',
        type=positive,
        default=IMAGENET,
        help="of the dataset, for lengths in epochs; default: ImageNet-1k's",
    )
    parser.add_argument(
        '--fsdp', action='store_true', help='split models instead of DDP'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE'
    )
    args = parser.parse_args()
    for name in ('tflops', 'node_gbs', 'network_gbs'):
        if getattr(args, name) <= 0:
            option = name.replace('_', '-')
            parser.error(f'--{option} is {getattr(args, name)}; expected > 0')
    return args


def main() -> None:
    args = parse_args()
    # Not a line for each initialised weight.
    MMLogger.get_current_instance().setLevel('WARNING')
    rates = Rates(
        args.tflops, args.node_gbs, args.network_gbs, args.gpus_per_node
    )
    with launch.report_errors():
        options = args.cfg_options or {}
        cfg = launch.load_config(args.config, dict(options))
        schedule = schedule_of(cfg, args.config, options, args.images)
    costs = [estimate(schedule, n, rates, args.fsdp) for n in args.gpus]
    print(
        f'{args.config}, {"FSDP" if args.fsdp else "DDP"}, assumed: '
        f'{args.tflops:g} TFLOP/s a GPU in training, {args.node_gbs:g} GB/s '
        f'within machines of {args.gpus_per_node}, {args.network_gbs:g} GB/s '
        'between them'
        + (
            ''
            if cfg.train_cfg.get('max_iters')
            else f', {args.images:,} images'
        )
    )
    print(table(schedule, costs))


if __name__ == '__main__':
    main()
