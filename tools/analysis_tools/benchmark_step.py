"""Measure a training step: time, images/s, memory, share of the peak rate.

With --vs two configs run in turn in one process and their ratio is printed
pair by pair. On a machine that others use as well, trust the median of the
ratios, not the times.
"""

import argparse
import json
import os
from statistics import median

import torch
from mmengine.config import DictAction
from mmengine.logging import MMLogger

from ropim_mm.engine import launch
from ropim_mm.evaluation.benchmark_machine import device_name
from ropim_mm.evaluation.benchmark_step import (
    ProjectionClock,
    StepSpec,
    TrainingStep,
    compare,
    peak_memory,
    profile_table,
)

DTYPES = {'fp32': 'float32', 'bf16': 'bfloat16', 'fp16': 'float16'}
ROWS = (
    ('step, median', 'seconds', '{:.4f} s'),
    ('step, minimum', 'seconds_minimum', '{:.4f} s'),
    ('processor time, median', 'cpu_seconds', '{:.4f} s'),
    ('images/s', 'images_per_second', '{:.2f}'),
    ('GFLOP an image', 'gflop_per_image', '{:.3f}'),
    ('matrix GFLOP/s, median', 'matrix_gflop_per_second', '{:.1f}'),
    ('matrix GFLOP/s, best', 'matrix_gflop_per_second_best', '{:.1f}'),
    ('share of it, median', 'fraction', '{:.3f}'),
    ('share, best of best', 'fraction_of_best', '{:.3f}'),
    ('peak memory', 'peak_memory_gib', '{:.3f} GiB'),
    ('projection and loss', 'projection_share', '{:.2%}'),
)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{value} is not positive')
    return value


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
        '--dtype', choices=DTYPES, help='default: that of the config'
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
    parser.add_argument('--json', metavar='FILE', help='write the results')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change fields of both configs',
    )
    return parser.parse_args()


def quotients(numerators: list[float], denominators: list[float]) -> list:
    pairs = zip(numerators, denominators, strict=True)
    return [a / b for a, b in pairs]


def print_round(number: int, timings: list) -> None:
    cells = [f'{t.seconds[-1]:9.4f} s {t.fractions[-1]:6.3f}' for t in timings]
    line = f'{number + 1:>5}  ' + '  '.join(cells)
    if len(timings) == 2:
        line += f'  {timings[0].seconds[-1] / timings[1].seconds[-1]:7.3f}'
    print(line, flush=True)


def print_table(results: list[dict]) -> None:
    names = 'AB'[: len(results)]
    print(f'\n{"":26}' + ''.join(f'{name:>16}' for name in names))
    for title, key, form in ROWS:
        cells = [
            '-' if r.get(key) is None else form.format(r[key]) for r in results
        ]
        print(f'{title:26}' + ''.join(f'{cell:>16}' for cell in cells))


def measure(args: argparse.Namespace) -> dict:
    if args.threads:
        torch.set_num_threads(args.threads)
    specs = [
        StepSpec(
            config,
            args.cfg_options or {},
            args.batch_size,
            DTYPES.get(args.dtype),
            args.compile,
        )
        for config in (args.config, args.vs)
        if config
    ]
    steps = [TrainingStep(spec) for spec in specs]
    machine = dict(
        device=device_name(steps[0].device),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )
    print('{device}, {threads} CPU thread(s), torch {torch}'.format(**machine))
    for name, step in zip('AB', steps, strict=False):
        dtype = str(step.dtype).removeprefix('torch.')
        print(f'{name}: {step}, trained in {dtype}')
    print(
        '\nround  '
        + '  '.join(f'{n:>9}    share' for n in 'AB'[: len(steps)])
        + ('  time A/B' if args.vs else '')
    )
    timings = compare(steps, args.iters, print_round)

    results = []
    for step, timing in zip(steps, timings, strict=True):
        result = dict(
            config=step.spec.config,
            dtype=str(step.dtype).removeprefix('torch.'),
            batch_size=step.batch_size,
            compiled=step.spec.compile,
            **timing.summary(),
            rounds=timing.seconds,
            cpu_rounds=timing.cpu_seconds,
            matrix_rates=timing.rates,
        )
        if ProjectionClock.applies_to(step):
            shares = ProjectionClock(step).shares(max(3, args.iters // 2))
            result['projection_share'] = median(shares)
            result['projection_shares'] = shares
        if not args.no_memory:
            peak = peak_memory(step, args.threads)
            result['peak_memory_gib'] = peak / 2**30
        results.append(result)
    report = dict(machine, results=results)
    if args.vs:
        a, b = timings
        report['ratios'] = quotients(a.seconds, b.seconds)
        report['cpu_ratios'] = quotients(a.cpu_seconds, b.cpu_seconds)

    print_table(results)
    if not args.no_memory and steps[0].device.type == 'cpu':
        print(
            'peak memory: resident set of a process that only runs this '
            'step, less what it held before it built the model'
        )
    for name, result in zip('AB', results, strict=False):
        if 'projection_share' in result:
            low, high = (f(result['projection_shares']) for f in (min, max))
            print(
                f'{name}: projection and loss: '
                f'{result["projection_share"]:.2%} of the step, forward and '
                f'backward ({low:.2%} to {high:.2%} in '
                f'{len(result["projection_shares"])} steps)'
            )
    if args.vs:
        for title, key in (('', 'ratios'), ('processor ', 'cpu_ratios')):
            ratios = report[key]
            print(
                f'{title}time A / {title}time B, pair by pair: median '
                f'{median(ratios):.3f}, {min(ratios):.3f} to '
                f'{max(ratios):.3f}'
            )
    if args.profile:
        for name, step in zip('AB', steps, strict=False):
            print(f'\n{name}: {step.spec.config}\n{profile_table(step)}')
    return report


def main() -> None:
    args = parse_args()
    # Not a line for each initialised weight.
    MMLogger.get_current_instance().setLevel('WARNING')
    with launch.report_errors():
        report = measure(args)
    if args.json:
        os.makedirs(os.path.dirname(args.json) or '.', exist_ok=True)
        with open(args.json, 'w', encoding='utf-8') as file:
            json.dump(report, file, indent=2)
            file.write('\n')


if __name__ == '__main__':
    main()
