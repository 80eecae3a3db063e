"""Measure a training step: time, images/s, memory, share of the peak rate.

With --vs two configs run in turn in one process and their ratio is printed
pair by pair, beside that of their FLOPs; with --vs-cfg-options alone a config
runs in turn with a variant of itself. On a machine that others use as well,
trust the median of the ratios, not the times.
"""

import argparse

from mmengine.config import DictAction
from mmengine.logging import MMLogger

from ropim_mm.engine import launch
from ropim_mm.evaluation.benchmark_step import StepSpec
from ropim_mm.evaluation.command_line import positive, write_json
from ropim_mm.evaluation.step_report import report_steps

DTYPES = {'fp32': 'float32', 'bf16': 'bfloat16', 'fp16': 'float16'}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file (A)')
    parser.add_argument('--vs', metavar='CONFIG', help='another one (B)')
    parser.add_argument(
        '--batch-size',
        type=positive,
        metavar='N',
        help='images a step; default: that of the config',
    )
    parser.add_argument(
        '--size',
        type=positive,
        metavar='PX',
        help='side of the images of both configs; default: that of each',
    )
    parser.add_argument(
        '--dtype', choices=DTYPES, help='default: that of the config'
    )
    parser.add_argument(
        '--backbone',
        action='store_true',
        help='measure forward and backward of model.backbone alone, of a '
        'config of any framework',
    )
    parser.add_argument(
        '--compile', action='store_true', help='with torch.compile'
    )
    parser.add_argument(
        '--iters',
        type=positive,
        default=10,
        metavar='N',
        help='rounds; each times every config once (default 10)',
    )
    parser.add_argument(
        '--threads',
        type=positive,
        metavar='N',
        help="of PyTorch on the CPU; default: PyTorch's choice",
    )
    parser.add_argument(
        '--no-memory',
        action='store_true',
        help='do not measure memory (on a CPU that takes a process of its '
        'own for each config)',
    )
    parser.add_argument(
        '--profile',
        action='store_true',
        help='also print the operators that take most time',
    )
    parser.add_argument(
        '--floor',
        action='store_true',
        help='also time the matrix products of each step alone, with their '
        'shapes: what no step with these products can be faster than',
    )
    parser.add_argument('--json', metavar='FILE', help='write the results')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change fields of both configs',
    )
    parser.add_argument(
        '--vs-cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change fields of B only, after --cfg-options; without --vs, B '
        'is the same config as A',
    )
    args = parser.parse_args()
    if args.vs is None and args.vs_cfg_options:
        args.vs = args.config
    return args


def main() -> None:
    args = parse_args()
    # Not a line for each initialised weight.
    MMLogger.get_current_instance().setLevel('WARNING')
    with launch.report_errors():
        specs = [
            StepSpec(
                config,
                {**(args.cfg_options or {}), **(own or {})},
                args.batch_size,
                DTYPES.get(args.dtype),
                args.compile,
                args.size,
                args.backbone,
            )
            for config, own in (
                (args.config, None),
                (args.vs, args.vs_cfg_options),
            )
            if config
        ]
        report = report_steps(
            specs,
            args.iters,
            threads=args.threads,
            memory=not args.no_memory,
            profile=args.profile,
            floor=args.floor,
        )
    if args.json:
        write_json(args.json, report)


if __name__ == '__main__':
    main()
