"""One or two training steps side by side: measured, printed, returned."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import torch

from .benchmark_machine import device_name
from .benchmark_step import (
    StepSpec,
    Timing,
    TrainingStep,
    compare,
    make_step,
    peak_memory,
)
from .products import ProductsAlone
from .step_parts import PartsClock, profile_table

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
)


def report_steps(
    specs: Sequence[StepSpec],
    rounds: int,
    *,
    threads: int | None = None,
    memory: bool = True,
    profile: bool = False,
    floor: bool = False,
) -> dict:
    """Measure steps in turn, print what was found while it is found.

    Args:
        specs: One or two.
        rounds: How often each has its turn.
        threads: Of PyTorch on the CPU; None for PyTorch's choice.
        memory: Measure memory (on a CPU in a process for each step).
        profile: Also print the operators that take most time.
        floor: Also time the matrix products of each step alone.

    Returns:
        The machine (``device``, ``threads``, ``torch``), ``results`` with a
        dict for each step. For two steps also, one a round and the first
        over the second: ``ratios`` and ``cpu_ratios``, of times a step, and
        ``image_ratios``, of images/s; and ``flop_ratio``, of operations an
        image. With ``floor`` each result has ``product_seconds``, one a
        round.

    Raises:
        LaunchError: A step cannot be built, or its memory not be measured.
    """
    if threads:
        torch.set_num_threads(threads)
    steps = [make_step(spec) for spec in specs]
    report = dict(
        device=device_name(steps[0].device),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )
    print('{device}, {threads} CPU thread(s), torch {torch}'.format(**report))
    for name, step in zip('AB', steps, strict=False):
        print(f'{name}: {step}, trained in {_dtype(step)}')
    print(
        '\nround  '
        + '  '.join(f'{name:>9}    share' for name in 'AB'[: len(steps)])
        + ('  time A/B' if len(steps) == 2 else '')
    )
    products = [ProductsAlone(step) for step in steps] if floor else []
    alone = [[] for _ in products]

    def after_round(number: int, timings: list[Timing]) -> None:
        _print_round(number, timings)
        for each, seconds in zip(products, alone, strict=True):
            seconds.append(each.seconds())

    timings = compare(steps, rounds, after_round)
    report['results'] = [
        _result(step, timing, max(3, rounds // 2))
        for step, timing in zip(steps, timings, strict=True)
    ]
    for result, seconds in zip(report['results'], alone, strict=False):
        result['product_seconds'] = seconds
    if memory:
        for step, result in zip(steps, report['results'], strict=True):
            result['peak_memory_gib'] = peak_memory(step, threads) / 2**30
    if len(steps) == 2:
        a, b = timings
        report['ratios'] = _quotients(a.seconds, b.seconds)
        report['cpu_ratios'] = _quotients(a.cpu_seconds, b.cpu_seconds)
        report['flop_ratio'] = a.flops * b.images / (b.flops * a.images)
        report['image_ratios'] = [
            a.images / b.images / ratio for ratio in report['ratios']
        ]
    _print_table(report['results'])
    if memory and steps[0].device.type == 'cpu':
        print(
            'peak memory: resident set of a process that only runs this '
            'step, less what it held before it built the model'
        )
    _print_parts(report['results'])
    if floor:
        _print_floor(report['results'])
    _print_ratios(report)
    if profile:
        for name, step in zip('AB', steps, strict=False):
            print(f'\n{name}: {step.spec.config}\n{profile_table(step)}')
    return report


def _dtype(step: TrainingStep) -> str:
    return str(step.dtype).removeprefix('torch.')


def _quotients(numerators: list[float], denominators: list[float]) -> list:
    pairs = zip(numerators, denominators, strict=True)
    return [a / b for a, b in pairs]


def _result(step: TrainingStep, timing: Timing, rounds: int) -> dict:
    return dict(
        config=step.spec.config,
        options=step.spec.options,
        dtype=_dtype(step),
        batch_size=step.batch_size,
        compiled=step.spec.compile,
        **timing.summary(),
        rounds=timing.seconds,
        cpu_rounds=timing.cpu_seconds,
        matrix_rates=timing.rates,
        part_shares=PartsClock(step).shares(rounds),
    )


def _print_round(number: int, timings: list[Timing]) -> None:
    cells = [f'{t.seconds[-1]:9.4f} s {t.fractions[-1]:6.3f}' for t in timings]
    line = f'{number + 1:>5}  ' + '  '.join(cells)
    if len(timings) == 2:
        line += f'  {timings[0].seconds[-1] / timings[1].seconds[-1]:7.3f}'
    print(line, flush=True)


def _print_table(results: list[dict]) -> None:
    names = 'AB'[: len(results)]
    print(f'\n{"":26}' + ''.join(f'{name:>16}' for name in names))
    for title, key, form in ROWS:
        cells = [
            '-' if r.get(key) is None else form.format(r[key]) for r in results
        ]
        print(f'{title:26}' + ''.join(f'{cell:>16}' for cell in cells))


def _print_parts(results: list[dict]) -> None:
    for name, result in zip('AB', results, strict=False):
        for title, shares in result['part_shares'].items():
            print(
                f'{name}: {title}: {median(shares):.2%} of the step, forward '
                f'and backward ({min(shares):.2%} to {max(shares):.2%} in '
                f'{len(shares)} steps)'
            )


def _print_floor(results: list[dict]) -> None:
    for name, result in zip('AB', results, strict=False):
        shares = _quotients(result['product_seconds'], result['rounds'])
        print(
            f'{name}: its matrix products alone: '
            f'{median(result["product_seconds"]):.4f} s, '
            f'{median(shares):.3f} of the step ({min(shares):.3f} to '
            f'{max(shares):.3f})'
        )
    if len(results) == 2:
        a, b = results
        beyond = [
            (x - y) / step
            for x, y, step in zip(
                a['product_seconds'],
                b['product_seconds'],
                b['rounds'],
                strict=True,
            )
        ]
        print(
            f'products of A less products of B: {median(beyond):+.2%} of '
            f'step B ({min(beyond):+.2%} to {max(beyond):+.2%})'
        )


def _print_ratios(report: dict) -> None:
    for title, key in (
        ('time A / time B', 'ratios'),
        ('processor time A / processor time B', 'cpu_ratios'),
        ('images/s of A / images/s of B', 'image_ratios'),
    ):
        ratios = report.get(key)
        if ratios:
            print(
                f'{title}, pair by pair: median {median(ratios):.3f}, '
                f'{min(ratios):.3f} to {max(ratios):.3f}'
            )
    if 'flop_ratio' in report:
        ratio = report['flop_ratio']
        print(
            f'FLOPs an image of A / of B: {ratio:.3f}; at equal rates that '
            f'would be {1 / ratio:.3f} times the images/s'
        )
