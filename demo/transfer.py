"""From pretraining to segmentation and detection, on a handful of photos.

For each method: pretrain a small encoder on a folder of photos, then train
UperNet and Mask R-CNN on a few annotated photos until they know these by
heart, from the pretrained encoder and from random weights, with the same
budget. Measured on the photos they were trained on: this shows that all parts
work together and how fast they learn, not how well they generalise.

The recipes are those of configs/, made small (demo/small_recipes.py); the
repository's own tools run them, in processes of their own. Trainings from a
pretrained encoder are stopped in the middle and resumed. Each log begins with
the command. With everything it takes about half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import report
import small_recipes
from folder import ROOT, DemoError, clear, commit, cores, environment, own
from jobs import Job, JobError, Pool, Screen
from mmengine.config import Config
from small_recipes import ADE, METHODS, photos_of

from ropim_mm.stack import (
    StackError,
    require_detection,
    require_segmentation,
)

ANNOTATIONS = 'annotations/instances_val2017.json'
TASKS = ('segmentation', 'detection')
ARMS = ('pretrained', 'random')
METRICS = dict(
    segmentation=(('mIoU', 'mIoU'),),
    detection=(('box AP', 'coco/bbox_mAP'), ('mask AP', 'coco/segm_mAP')),
)
FACTORS = dict(mIoU=1.0)  # of metrics that are in percent already

# Seconds on one core of a plain server, for the time left on screen.
START_SECONDS = 10.0
STEP_SECONDS = dict(pretraining=0.6, segmentation=0.5, detection=0.7)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'photos', type=Path, help='folder of photos to pretrain on'
    )
    parser.add_argument(
        '--ade',
        type=Path,
        metavar='DIR',
        help='ADE20K: images/validation and annotations/validation',
    )
    parser.add_argument(
        '--coco',
        type=Path,
        metavar='DIR',
        help='COCO: val2017 and annotations/instances_val2017.json; needs '
        "MMCV's compiled operators (make detection)",
    )
    parser.add_argument(
        '--methods', nargs='+', choices=METHODS, default=METHODS
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=ROOT / 'work_dirs' / 'transfer',
        help='default: work_dirs/transfer in the repository; what an earlier '
        'run wrote there is replaced',
    )
    parser.add_argument(
        '--annotated',
        type=int,
        default=3,
        help='photos of ADE20K and of COCO to use; default: 3',
    )
    parser.add_argument(
        '--pretrain-photos',
        type=int,
        default=200,
        help='photos to pretrain on; default: 200',
    )
    parser.add_argument(
        '--epochs', type=int, default=60, help='of pretraining; default: 60'
    )
    parser.add_argument(
        '--iterations',
        type=int,
        default=400,
        help='updates of UperNet and of Mask R-CNN; default: 400',
    )
    parser.add_argument(
        '--workers',
        type=int,
        default=cores(),
        help='processes at a time, of one thread each; default: one a core',
    )
    args = parser.parse_args(arguments)
    if args.ade is None and args.coco is None:
        parser.error('give --ade DIR, --coco DIR, or both')
    for name, low in (
        ('annotated', 1),
        ('pretrain_photos', 20),
        ('epochs', 4),
        ('iterations', 20),
        ('workers', 1),
    ):
        value = getattr(args, name)
        if value < low:
            option = name.replace('_', '-')
            parser.error(f'--{option} is {value}; expected {low} or more')
    return args


def require(*paths: Path) -> None:
    """Stop where a part of a dataset is missing."""
    for path in paths:
        if not path.exists():
            raise DemoError(
                f'{path} does not exist; see --help for what is expected where'
            )


def check(args: argparse.Namespace) -> list[Path]:
    """See whether everything is there, before anything is replaced.

    Returns:
        The photos to pretrain on.

    Raises:
        DemoError: A folder is missing or holds too few photos.
        StackError: Detection is asked for, and what it needs is missing.
    """
    require(args.photos)
    photos = photos_of(args.photos)[: args.pretrain_photos]
    if len(photos) < 20:  # a batch
        raise DemoError(
            f'{args.photos} holds {len(photos)} photos; expected 20 or more'
        )
    if args.ade is not None:
        require(*(args.ade / f'{kind}/validation' for kind in ADE))
        require_segmentation()
    if args.coco is not None:
        require(args.coco / 'val2017', args.coco / ANNOTATIONS)
        require_detection()
    return photos


def prepare(
    args: argparse.Namespace, photos: list[Path]
) -> dict[str, Callable[[str], Config]]:
    """Write the photos and the annotations that are used.

    Returns:
        For each task, what gives the config of a method.

    Raises:
        DemoError: A photo cannot be read.
    """
    args.pretrain_photos = len(photos)
    work_dir = args.work_dir
    (work_dir / 'photos').mkdir()
    for number, path in enumerate(photos):
        try:
            small_recipes.shrink_photo(path, work_dir / 'photos', number)
        except Exception as error:
            raise DemoError(
                f'cannot read {path}: {error}. Repair or remove it'
            ) from error
    made = dict(
        pretraining=lambda method: small_recipes.pretraining(
            method, work_dir / 'photos', work_dir / 'maps', args.epochs
        )
    )
    if args.ade is not None:
        ade = args.ade.resolve()
        found = photos_of(ade / f'{ADE[0]}/validation')
        count = min(args.annotated, len(found))
        made['segmentation'] = lambda method: small_recipes.segmentation(
            method, ade, count, args.iterations
        )
    if args.coco is not None:
        coco = args.coco.resolve()
        target = work_dir / 'instances.json'
        small_recipes.first_photos(coco / ANNOTATIONS, args.annotated, target)
        made['detection'] = lambda method: small_recipes.detection(
            method, coco / 'val2017', target, args.iterations
        )
    return made


def plan(args: argparse.Namespace, tasks: list[str]) -> list[Job]:
    """All processes, in the order in which they should start."""
    python, tools = sys.executable, ROOT / 'tools'
    train, test = (python, tools / 'train.py'), (python, tools / 'test.py')
    jobs = []
    updates = args.epochs * (args.pretrain_photos // 20)
    for method in args.methods:
        name = f'{method}-pretraining'
        commands = [[*train, f'configs/{name}.py', '--work-dir', name]]
        if method == 'rmae':
            tool = tools / 'dataset_converters/create_fh_masks.py'
            scale = ('--scales', '100', '--workers', '1')
            commands.insert(0, [python, tool, 'photos', 'maps', *scale])
        jobs.append(
            Job(
                name,
                commands,
                args.work_dir / f'logs/{name}.log',
                START_SECONDS + STEP_SECONDS['pretraining'] * updates,
                run=args.work_dir / name,
                epochs=args.epochs,
            )
        )
    for method in args.methods:
        weights = f'{method}-pretraining/epoch_{args.epochs}.pth'
        for task in tasks:
            config = f'configs/{method}-{task}.py'
            for arm in ARMS:
                run = f'{method}-{task}-{arm}'
                init = 'model.backbone.init_cfg'
                options = ['--work-dir', run, '--cfg-options']
                options.append(
                    f'{init}.checkpoint={weights}'
                    if arm == 'pretrained'
                    else f'{init}=None'
                )
                commands = [[*train, config, *options]]
                if arm == 'pretrained':
                    half = f'train_cfg.max_iters={args.iterations // 2}'
                    final = f'{run}/iter_{args.iterations}.pth'
                    commands = [
                        [*commands[0], half],
                        [*train, config, '--resume', *options],
                        [
                            *(*test, config, final),
                            *('--work-dir', f'{run}/test'),
                            *('--show-dir', f'pictures/{method}-{task}'),
                        ],
                    ]
                jobs.append(
                    Job(
                        run,
                        commands,
                        args.work_dir / f'logs/{run}.log',
                        START_SECONDS * len(commands)
                        + STEP_SECONDS[task] * args.iterations,
                        after=(f'{method}-pretraining',)
                        if arm == 'pretrained'
                        else (),
                        run=args.work_dir / run,
                        epochs=args.iterations,
                    )
                )
    return jobs


def results_of(run: Path, task: str) -> dict[str, float]:
    """First and last loss, and the metrics at the end, in percent."""
    _, losses = report.history(run, 'loss')
    found = dict(first_loss=losses[0], last_loss=losses[-1])
    for name, key in METRICS[task]:
        _, values = report.history(run, key)
        found[name] = values[-1] * FACTORS.get(name, 100.0)
    return found


def table(results: dict[str, dict], task: str) -> str:
    """A Markdown table of one task: a row a method, both arms."""
    names = [name for name, _ in METRICS[task]]
    head = ['method', 'loss, pretrained', 'loss, random']
    head += [f'{name}, {arm}' for name in names for arm in ARMS]
    rows = [head, ['---'] + ['---:'] * (len(head) - 1)]
    for method, arms in results.items():
        row = [method]
        row += [
            f'{arms[arm]["first_loss"]:.2f} -> {arms[arm]["last_loss"]:.2f}'
            for arm in ARMS
        ]
        row += [f'{arms[arm][name]:.1f}' for name in names for arm in ARMS]
        rows.append(row)
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def run(args: argparse.Namespace) -> None:
    """All steps.

    Raises:
        DemoError, JobError, StackError: With a message for the user.
    """
    screen = Screen()
    work_dir = args.work_dir = args.work_dir.resolve()
    args.photos = args.photos.resolve()
    photos = check(args)
    clear(work_dir)
    own(work_dir, 'photos', 'maps', 'logs', 'configs', 'instances.json')
    own(work_dir, 'results.md', 'results.json', 'pictures')
    for name in ('logs', 'configs'):
        (work_dir / name).mkdir()
    makers = prepare(args, photos)
    for task, make in makers.items():
        for method in args.methods:
            name = f'{method}-{task}'
            make(method).dump(work_dir / f'configs/{name}.py')
    tasks = [task for task in TASKS if task in makers]
    jobs = plan(args, tasks)
    own(work_dir, *(job.run.name for job in jobs))
    pool = Pool(jobs, args.workers, work_dir, environment(), screen)
    screen.line(
        f'{args.pretrain_photos} photos to pretrain on, {len(jobs)} '
        f'trainings, {args.workers} at a time; logs in {work_dir / "logs"}',
        pool.left(),
    )

    def outcome(job: Job) -> str:
        _, losses = report.history(job.run, 'loss')
        text = f', loss {losses[0]:.3f} -> {losses[-1]:.3f}'
        for task in tasks:
            if f'-{task}-' in job.run.name:
                found = results_of(job.run, task)
                for name, _ in METRICS[task]:
                    text += f', {name} {found[name]:.1f}'
        return text

    pool.run(outcome)
    details = dict(
        commit=commit(),
        seconds=round(screen.elapsed),
        pretraining={
            method: report.history(work_dir / f'{method}-pretraining', 'loss')[
                1
            ]
            for method in args.methods
        },
    )
    texts = []
    for task in tasks:
        details[task] = {
            method: {
                arm: results_of(work_dir / f'{method}-{task}-{arm}', task)
                for arm in ARMS
            }
            for method in args.methods
        }
        texts.append(f'{task}:\n\n{table(details[task], task)}\n')
    text = '\n'.join(texts)
    (work_dir / 'results.md').write_text(text)
    (work_dir / 'results.json').write_text(json.dumps(details, indent=2))
    print(f'\n{text}')
    print(f'{work_dir / "results.md"}: these tables; results.json has more')
    print(f'{work_dir / "pictures"}: what the pretrained ones found')
    print(f'{screen.elapsed:.0f} seconds in all')


def main() -> None:
    args = parse_args()
    try:
        run(args)
    except KeyboardInterrupt:
        raise SystemExit('stopped') from None
    except (DemoError, JobError, StackError) as error:
        raise SystemExit(f'error: {error}') from None


if __name__ == '__main__':
    main()
