"""What the tools of ``tools/dataset_converters`` share on the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ropim_mm.datasets.conversion import Report
from ropim_mm.engine.launch import report_errors

from .benchmark_machine import usable_cores
from .command_line import natural


def shard(text: str) -> tuple[int, int]:
    """An argument I/N.

    Raises:
        ValueError: It is no pair of numbers.
    """
    index, _, count = text.partition('/')
    return int(index), int(count)


@contextmanager
def reporting() -> Iterator[None]:
    """Print errors that the user can mend, and Ctrl-C, without a traceback.

    Raises:
        SystemExit: With status 1, or 130 after Ctrl-C.
    """
    # Names of files may be bytes that are no text.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors='backslashreplace')
    try:
        with report_errors():
            yield
    except KeyboardInterrupt:
        print('stopped; the same command goes on from here', file=sys.stderr)
        sys.exit(130)


def add_run_arguments(
    parser: argparse.ArgumentParser, items: str, verify: str
) -> argparse._MutuallyExclusiveGroup:
    """Add what says how a run goes: workers, shard, errors, verification.

    Args:
        parser: To add to.
        items: What is made, in the plural, such as 'maps'.
        verify: What ``--verify`` checks of every image, such as 'has maps
            that can be read and fit it'.

    Returns:
        The group of what is done in place of converting.
    """
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
        help='only every N-th image, beginning with the I-th, from 0',
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
        help=f'make nothing; check that every image {verify}, list what is '
        'missing or broken, and exit with status 1 if there is anything. '
        'Images that cannot be read (as --on-error skip leaves them out) are '
        'listed too, but with nothing else the status is 0',
    )
    mode.add_argument(
        '--repair',
        action='store_true',
        help=f'check the {items} that are there, and make bad ones again',
    )
    return mode


def run(
    args: argparse.Namespace,
    items: str,
    settings: Callable[[], object],
    convert: Callable[..., Report],
    verify: Callable[..., Report],
    size: Callable[[Report], str],
) -> int:
    """Convert or verify, and print what came of it.

    Args:
        args: With ``images``, ``out`` and what :func:`add_run_arguments`
            adds.
        items: As there.
        settings: Gives those of the command line, None where it names none.
        convert: Of the converter, see
            :func:`ropim_mm.datasets.conversion.convert`.
        verify: Likewise.
        size: Says how large the files made are.

    Returns:
        The exit status.

    Raises:
        SystemExit: See :func:`reporting`.
    """
    shared = dict(workers=args.workers, shard=args.shard, progress=sys.stderr)
    with reporting():
        chosen = settings()
        if args.verify:
            report = verify(args.images, args.out, chosen, **shared)
        else:
            report = convert(
                args.images,
                args.out,
                chosen,
                on_error=args.on_error,
                repair=args.repair,
                **shared,
            )
    _list_faults(report, items)
    if args.verify:
        return _sum_up(report, items)
    print(
        f'{report.total} images: {items} of {report.done} made, of '
        f'{report.present} there before; {len(report.unreadable)} images '
        'unreadable'
    )
    if report.done:
        print(
            f'{report.done / report.seconds:.2f} images/s with '
            f'{args.workers} worker(s) in {report.seconds:.1f} s; '
            f'{report.written} bytes, {size(report)}'
        )
    return 0


def _list_faults(report: Report, items: str) -> None:
    for name in report.missing:
        print(f'missing: {items} of {name}')
    for name, reason in report.broken:
        print(f'broken: {items} of {name}: {reason}')
    for name, reason in report.unreadable:
        print(f'unreadable image: {name}: {reason}')


def _sum_up(report: Report, items: str) -> int:
    print(
        f'{report.total} images: {items} of {report.done} are in order, '
        f'{len(report.missing)} missing, {len(report.broken)} broken; '
        f'{len(report.unreadable)} images unreadable'
    )
    unreadable = {name for name, _ in report.unreadable}
    broken = {name for name, _ in report.broken}
    if report.missing or broken - unreadable:
        print('--repair in place of --verify makes them')
    if broken & unreadable:
        print(
            f'{len(broken & unreadable)} of the broken {items} are of images '
            'that cannot be read: repair the images, or remove both'
        )
    return 1 if report.missing or broken else 0
