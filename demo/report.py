"""Numbers and curves of the demo."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from jobs import read_scalars
from matplotlib.figure import Figure

_COLOURS = {'scratch': '#c2571a', 'pretrained': '#1f5fa8'}
_NAMES = {'scratch': 'from scratch', 'pretrained': 'pretrained by ROPIM'}


def history(run: Path, key: str) -> tuple[list[float], list[float]]:
    """A curve from a work folder: epochs, and the values logged for them.

    Args:
        run: Work folder of a training.
        key: Name of the scalar. For those of training, entries of one epoch
            are averaged.
    """
    values: dict[float, list[float]] = {}
    for file in sorted(run.glob('*/vis_data/scalars.json')):
        for entry in read_scalars(file):
            if key in entry:
                epoch = entry.get('epoch', entry.get('step'))
                values.setdefault(epoch, []).append(entry[key])
    epochs = sorted(values)
    return epochs, [statistics.fmean(values[epoch]) for epoch in epochs]


def summarise(accuracies: dict[str, Sequence[float]]) -> dict[str, dict]:
    """Mean and spread of each arm, and of the difference seed by seed.

    Args:
        accuracies: Of ``scratch`` and ``pretrained``, in percent, one a
            seed, in the same order.

    Returns:
        For each, and for ``difference``: ``values``, ``mean``, and ``std``
        (the sample's; None for one seed).
    """
    rows = dict(accuracies)
    rows['difference'] = [
        p - s
        for s, p in zip(
            accuracies['scratch'], accuracies['pretrained'], strict=True
        )
    ]
    return {
        name: dict(
            values=list(values),
            mean=statistics.fmean(values),
            std=statistics.stdev(values) if len(values) > 1 else None,
        )
        for name, values in rows.items()
    }


def table(summary: dict[str, dict], caption: str) -> str:
    """The results as Markdown.

    Args:
        summary: From :func:`summarise`.
        caption: What the numbers are, below the table.
    """
    seeds = range(len(summary['scratch']['values']))
    head = ['start', 'mean', 'std', *(f'seed {i}' for i in seeds)]
    lines = [head, [':--', *['--:'] * (len(head) - 1)]]
    for name, label in (*_NAMES.items(), ('difference', 'difference')):
        row = summary[name]
        sign = '+' if name == 'difference' else ''
        std = '-' if row['std'] is None else f'{row["std"]:.1f}'
        lines.append(
            [
                label,
                f'{row["mean"]:{sign}.1f}',
                std,
                *(f'{value:{sign}.1f}' for value in row['values']),
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = [
        '| '
        + ' | '.join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + ' |'
        for line in lines
    ]
    return '\n'.join([*text, '', caption, ''])


def draw_curves(
    pretraining: Path, runs: dict[str, Sequence[Path]], target: Path
) -> None:
    """Draw the pretraining loss and both arms' accuracy over epochs.

    Args:
        pretraining: Work folder.
        runs: Work folders of each arm, one a seed.
        target: The picture to write.
    """
    figure = Figure(figsize=(9, 3.4), dpi=100, layout='tight')
    left, right = figure.subplots(1, 2)
    left.plot(*history(pretraining, 'loss'), color=_COLOURS['pretrained'])
    left.set(
        title='ROPIM pretraining, no labels',
        xlabel='epoch',
        ylabel='loss: mean |(I - P)(x - y)|',
    )
    for arm, folders in runs.items():
        curves = [history(folder, 'accuracy/top1') for folder in folders]
        for epochs, values in curves:
            right.plot(
                epochs, values, color=_COLOURS[arm], alpha=0.3, linewidth=0.8
            )
        epochs = curves[0][0]
        by_epoch = list(zip(*(values for _, values in curves), strict=True))
        right.plot(
            epochs,
            [statistics.fmean(values) for values in by_epoch],
            color=_COLOURS[arm],
            label=_NAMES[arm],
        )
        right.fill_between(
            epochs,
            [min(values) for values in by_epoch],
            [max(values) for values in by_epoch],
            color=_COLOURS[arm],
            alpha=0.15,
            linewidth=0,
        )
    right.set(
        title='training with few labels',
        xlabel='epoch',
        ylabel='accuracy on held-out images (%)',
    )
    seeds = len(runs['scratch'])
    right.legend(
        loc='lower right',
        frameon=False,
        title=f'mean and range of {seeds} seeds' if seeds > 1 else None,
    )
    for axes in (left, right):
        axes.spines[['top', 'right']].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(target)
