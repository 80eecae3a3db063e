"""The tour: pretrain ROPIM on digits, then learn to read them from few labels.

Writes scikit-learn's handwritten digits as images, pretrains an encoder on
them without labels, and trains classifiers on few labelled ones, from the
pretrained encoder and from random weights, with several seeds. The steps are
run by the repository's own tools, in processes of their own; each log begins
with the command. Results, pictures and checkpoints go to the work folder.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

import report
from digits import write_digits
from folder import ROOT, DemoError, clear, commit, cores, environment, own
from jobs import Job, JobError, Pool, Screen
from mmengine.config import Config

DEMO = ROOT / 'demo'
PRETRAIN = DEMO / 'configs/ropim_vit-micro-p8_1xb50-coslr-120e_digits-32px.py'
FINETUNE = DEMO / 'configs/vit-micro-p8_1xb20-coslr-100e_digits-32px.py'

ARMS = ('scratch', 'pretrained')
SAMPLES = 6  # images in the picture of reconstructions

# Seconds on one core of a plain server, for the time left on screen.
START_SECONDS = 7.0
EPOCH_SECONDS = dict(pretrain=1.0, finetune=0.22)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=ROOT / 'work_dirs' / 'demo',
        help='default: work_dirs/demo in the repository; what an earlier run '
        'of the demo wrote there is replaced',
    )
    parser.add_argument(
        '--seeds', type=int, default=3, help='classifiers of each kind'
    )
    parser.add_argument(
        '--labels',
        type=int,
        default=10,
        help='labelled images a class, 1 to 100; default: 10',
    )
    parser.add_argument(
        '--epochs', type=int, help="of pretraining; default: the config's"
    )
    parser.add_argument(
        '--finetune-epochs',
        type=int,
        help="of each classifier; default: the config's",
    )
    parser.add_argument(
        '--workers',
        type=int,
        default=min(4, cores()),
        help='processes at a time, of one thread each; default: one a core, '
        'at most 4',
    )
    args = parser.parse_args(arguments)
    for name, low, high in (
        ('seeds', 1, 100),
        ('labels', 2, 100),
        ('epochs', 2, None),
        ('finetune_epochs', 2, None),
        ('workers', 1, None),
    ):
        value = getattr(args, name)
        if value is None:
            continue
        if value < low or (high is not None and value > high):
            wanted = f'{low} to {high}' if high else f'{low} or more'
            option = name.replace('_', '-')
            parser.error(f'--{option} is {value}; expected {wanted}')
    return args


def schedule_options(epochs: int, default: int) -> list[str]:
    """Options that fit a config's schedule to another number of epochs."""
    if epochs == default:
        return []
    warmup = max(1, epochs // 10)
    return [
        f'train_cfg.max_epochs={epochs}',
        f'param_scheduler.0.end={warmup}',
        f'param_scheduler.1.begin={warmup}',
        f'param_scheduler.1.end={epochs}',
    ]


def plan(args: argparse.Namespace, default: dict[str, int]) -> list[Job]:
    """All processes of the demo, in the order in which they should start."""
    python, tools = sys.executable, ROOT / 'tools'
    encoder = f'pretrain/epoch_{args.epochs}.pth'
    pretrain = Job(
        'pretraining',
        [
            [
                *(python, tools / 'train.py', PRETRAIN),
                *('--work-dir', 'pretrain'),
                *_options(schedule_options(args.epochs, default['pretrain'])),
            ]
        ],
        args.work_dir / 'logs/pretrain.log',
        START_SECONDS + EPOCH_SECONDS['pretrain'] * args.epochs,
        run=args.work_dir / 'pretrain',
        epochs=args.epochs,
    )
    pictures = Job(
        'reconstructions',
        [
            [
                *(python, tools / 'visualization/vis_reconstruction.py'),
                *(PRETRAIN, encoder, 'digits/samples', 'reconstructions'),
            ]
        ],
        args.work_dir / 'logs/reconstructions.log',
        START_SECONDS,
        after=('pretraining',),
    )
    classifiers = []
    for arm in ARMS:
        for seed in range(args.seeds):
            run = f'{arm}-seed{seed}'
            start = (
                f'.checkpoint={encoder}' if arm == 'pretrained' else '=None'
            )
            options = [
                f'model.backbone.init_cfg{start}',
                f'train_dataloader.dataset.data_prefix=few-seed{seed}',
                f'randomness.seed={seed}',
                *schedule_options(args.finetune_epochs, default['finetune']),
            ]
            weights = f'{run}/epoch_{args.finetune_epochs}.pth'
            classifiers.append(
                Job(
                    f'{arm}, seed {seed}',
                    [
                        [
                            *(python, tools / 'train.py', FINETUNE),
                            *('--work-dir', run),
                            *_options(options),
                        ],
                        [
                            *(python, tools / 'test.py', FINETUNE, weights),
                            *('--work-dir', run, '--out', f'{run}/test.json'),
                        ],
                    ],
                    args.work_dir / f'logs/{run}.log',
                    2 * START_SECONDS
                    + EPOCH_SECONDS['finetune'] * args.finetune_epochs,
                    after=('pretraining',) if arm == 'pretrained' else (),
                    run=args.work_dir / run,
                    epochs=args.finetune_epochs,
                )
            )
    return [pretrain, *classifiers, pictures]


def _options(options: list[str]) -> list[str]:
    return ['--cfg-options', *options] if options else []


def test_accuracy(run: Path) -> float:
    """Accuracy in percent that ``tools/test.py`` has written."""
    return float(json.loads((run / 'test.json').read_text())['accuracy/top1'])


def caption(args: argparse.Namespace, counts: dict[str, int]) -> str:
    """What the numbers of the table are."""
    return (
        f'Accuracy in % on {counts["test"]} test images. '
        f'{counts["few-seed0"]} labelled images ({args.labels} a class), '
        'drawn anew for each seed and the same for both rows; '
        f'{args.finetune_epochs} epochs; one recipe for both rows (learning '
        'rate, layer decay, augmentation), chosen on other images to be the '
        'best from scratch; the last weights. Pretraining: '
        f'{args.epochs} epochs on {counts["train"]} images without labels, '
        'once for all seeds.'
    )


def run(args: argparse.Namespace) -> None:
    """All steps.

    Raises:
        DemoError, JobError: With a message for the user.
    """
    screen = Screen()
    work_dir = args.work_dir = args.work_dir.resolve()
    clear(work_dir)
    default = {
        name: Config.fromfile(
            path, import_custom_modules=False
        ).train_cfg.max_epochs
        for name, path in (('pretrain', PRETRAIN), ('finetune', FINETUNE))
    }
    args.epochs = args.epochs or default['pretrain']
    args.finetune_epochs = args.finetune_epochs or default['finetune']

    results = ('results.md', 'results.json', 'curves.png')
    own(work_dir, 'digits', 'logs', 'reconstructions', 'reconstructions.png')
    own(work_dir, 'pretrain', *results)
    (work_dir / 'logs').mkdir()
    counts = write_digits(
        work_dir / 'digits', args.labels, args.seeds, SAMPLES
    )
    jobs = plan(args, default)
    runs = {arm: [] for arm in ARMS}
    for arm in ARMS:
        for seed in range(args.seeds):
            own(work_dir, f'{arm}-seed{seed}')
            runs[arm].append(work_dir / f'{arm}-seed{seed}')
    pool = Pool(jobs, args.workers, work_dir, environment(), screen)
    screen.line(
        f'{counts["train"]} images to pretrain on, {counts["few-seed0"]} of '
        f'them with labels, {counts["val"]} to watch, {counts["test"]} to '
        f'test; {args.workers} processes at a time; logs in '
        f'{work_dir / "logs"}',
        pool.left(),
    )

    def outcome(job: Job) -> str:
        if job.run is None:
            return ''
        if job.run.name == 'pretrain':
            _, losses = report.history(job.run, 'loss')
            return f', loss {losses[0]:.3f} -> {losses[-1]:.3f}'
        return f', test accuracy {test_accuracy(job.run):.1f} %'

    pool.run(outcome)

    summary = report.summarise(
        {arm: [test_accuracy(folder) for folder in runs[arm]] for arm in ARMS}
    )
    text = report.table(summary, caption(args, counts))
    report.draw_curves(work_dir / 'pretrain', runs, work_dir / 'curves.png')
    shutil.copyfile(
        work_dir / 'reconstructions/overview.png',
        work_dir / 'reconstructions.png',
    )
    (work_dir / 'results.md').write_text(text)
    epochs, losses = report.history(work_dir / 'pretrain', 'loss')
    details = dict(
        accuracy=summary,
        images=counts,
        labels_a_class=args.labels,
        pretraining=dict(
            epochs=args.epochs, first_loss=losses[0], last_loss=losses[-1]
        ),
        finetune_epochs=args.finetune_epochs,
        seconds=dict(
            all=round(screen.elapsed, 1),
            **{job.name: round(job.took, 1) for job in jobs},
        ),
        commit=commit(),
        python=platform.python_version(),
        torch=metadata.version('torch'),
        machine=f'{platform.machine()}, {cores()} cores',
    )
    (work_dir / 'results.json').write_text(json.dumps(details, indent=2))
    print(f'\n{text}')
    for name, what in (
        ('results.md', 'this table; results.json has all numbers'),
        ('curves.png', 'loss and accuracy over epochs'),
        ('reconstructions.png', 'what was removed, what was recovered'),
        (f'pretrain/epoch_{args.epochs}.pth', 'the pretrained model'),
    ):
        print(f'{work_dir / name}: {what}')
    print(f'{screen.elapsed:.0f} seconds in all')


def main() -> None:
    args = parse_args()
    try:
        run(args)
    except KeyboardInterrupt:
        raise SystemExit('stopped') from None
    except (DemoError, JobError) as error:
        raise SystemExit(f'error: {error}') from None


if __name__ == '__main__':
    main()
