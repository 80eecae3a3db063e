"""Measure the images/s that the workers of a training loader deliver.

With --vs two loaders have their turns one after the other, each with workers
of its own, and the ratio is printed pair by pair; with --vs-cfg-options alone
a config's loader and a variant of it, for instance without regions. Two views
of one image count as one. The first round also reads the files into memory
where they fit. Against torchvision, how far the same crops are apart is
printed, too. With --step the last line says whether training would wait.
"""

import argparse
from dataclasses import asdict
from statistics import median

from mmengine.config import DictAction
from mmengine.logging import MMLogger

from ropim_mm.datasets.jpeg import decoder_name
from ropim_mm.engine import launch
from ropim_mm.evaluation.benchmark_loader import (
    TORCHVISION,
    LoaderSpec,
    build_loader,
    compare,
    share_waiting,
    step_rate,
    verdict,
)
from ropim_mm.evaluation.benchmark_machine import device_name, usable_cores
from ropim_mm.evaluation.command_line import natural, positive, write_json


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file (A)')
    parser.add_argument(
        '--vs',
        metavar='CONFIG',
        help='another one (B), or "torchvision": the images of A decoded by '
        'Pillow, cropped, flipped and normalised by torchvision',
    )
    parser.add_argument(
        '--workers',
        type=natural,
        default=1,
        metavar='N',
        help='worker processes (default 1; 0 loads in the main process)',
    )
    parser.add_argument(
        '--batches',
        type=positive,
        default=10,
        metavar='N',
        help='timed batches a turn, after the warm-up (default 10)',
    )
    parser.add_argument(
        '--rounds',
        type=positive,
        default=5,
        metavar='N',
        help='turns of each loader (default 5)',
    )
    parser.add_argument(
        '--batch-size',
        type=positive,
        metavar='N',
        help='images a batch; default: that of the config',
    )
    parser.add_argument(
        '--step',
        metavar='RATE',
        help='say whether a step of so many images/s in one process (or of '
        'the first config in a file by benchmark_step.py --json) would wait '
        "for A's loader with the workers of the config",
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


def measure(args: argparse.Namespace) -> dict:
    step = step_rate(args.step) if args.step else None
    names = [args.config] + ([args.vs] if args.vs else [])
    shared = args.cfg_options or {}
    loaders = [
        build_loader(
            LoaderSpec(
                args.config if name == TORCHVISION else name,
                options,
                args.workers,
                args.batch_size,
                reference=name == TORCHVISION,
            )
        )
        for name, options in zip(
            names,
            (shared, {**shared, **(args.vs_cfg_options or {})}),
            strict=False,
        )
    ]
    report = dict(
        processor=device_name(),
        cores=usable_cores(),
        workers=args.workers,
        decoder=decoder_name(),
        results=[],
    )
    print(
        f'{report["processor"]}, {report["cores"]} core(s), '
        f'{args.workers} worker process(es); JPEGs in ropim_mm.LoadImage by '
        f'{report["decoder"]}'
    )
    for letter, name, loader in zip('AB', names, loaders, strict=False):
        print(
            f'{letter}: {name}, {len(loader.dataset)} images, batches of '
            f'{loader.batch_size}'
        )
    rates = compare(loaders, args.rounds, args.batches)
    for letter, name, values in zip('AB', names, rates, strict=False):
        total, each = median(values), max(1, args.workers)
        report['results'].append(
            dict(
                name=name,
                images_per_second=total,
                images_per_second_per_worker=total / each,
                images_per_second_best=max(values),
                rounds=values,
            )
        )
        print(
            f'{letter}: {total:.1f} images/s, {total / each:.1f} a worker '
            f'(median of {len(values)} rounds, {min(values):.1f} to '
            f'{max(values):.1f} in all)'
        )
    if args.vs:
        report['ratios'] = [a / b for a, b in zip(*rates, strict=True)]
        pairs = ' '.join(f'{ratio:.3f}' for ratio in report['ratios'])
        print(
            f'images/s of A / images/s of B, pair by pair: {pairs}; median '
            f'{median(report["ratios"]):.3f}'
        )
    if args.vs == TORCHVISION:
        difference = loaders[1].dataset.difference()
        report['difference'] = asdict(difference)
        print(difference)
    if step:
        cfg = launch.load_config(args.config, dict(shared))
        workers = cfg.train_dataloader.get('num_workers', 0)
        each = report['results'][0]['images_per_second_per_worker']
        report['share_waiting'] = share_waiting(step, each, workers)
        print(f'A: {verdict(step, each, workers)}')
    return report


def main() -> None:
    args = parse_args()
    MMLogger.get_current_instance().setLevel('WARNING')
    with launch.report_errors():
        report = measure(args)
    if args.json:
        write_json(args.json, report)


if __name__ == '__main__':
    main()
