"""Table and curves of the demo."""

import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope='module')
def report(demo):
    return demo('report')


def write_run(folder, entries):
    folder = folder / 'stamp/vis_data'
    folder.mkdir(parents=True)
    lines = map(json.dumps, entries)
    (folder / 'scalars.json').write_text('\n'.join(lines))


def test_history(report, tmp_path):
    write_run(
        tmp_path,
        [
            dict(loss=1.0, epoch=1, step=5),
            dict(loss=0.5, epoch=1, step=10),
            {'accuracy/top1': 30.0, 'step': 1},
            dict(loss=0.25, epoch=2, step=15),
            {'accuracy/top1': 40.0, 'step': 2},
        ],
    )
    assert report.history(tmp_path, 'loss') == ([1, 2], [0.75, 0.25])
    found = report.history(tmp_path, 'accuracy/top1')
    assert found == ([1, 2], [30.0, 40.0])


def test_summary_and_table(report):
    summary = report.summarise(
        dict(scratch=[50.0, 60.0, 70.0], pretrained=[49.0, 63.0, 71.0])
    )
    assert summary['scratch']['mean'] == 60
    assert summary['scratch']['std'] == pytest.approx(10)
    assert summary['difference']['values'] == [-1, 3, 1]
    assert summary['difference']['mean'] == pytest.approx(1)
    assert summary['difference']['std'] == pytest.approx(2)
    lines = report.table(summary, 'What it is.').splitlines()
    cells = [[c.strip() for c in x.split('|')[1:-1]] for x in lines[:5]]
    assert cells[0] == ['start', 'mean', 'std', 'seed 0', 'seed 1', 'seed 2']
    assert cells[2] == ['from scratch', '60.0', '10.0', '50.0', '60.0', '70.0']
    assert cells[4] == ['difference', '+1.0', '2.0', '-1.0', '+3.0', '+1.0']
    assert len({len(line) for line in lines[:5]}) == 1
    assert lines[-1] == 'What it is.'


def test_worse_is_said_as_well(report):
    summary = report.summarise(dict(scratch=[50.0], pretrained=[40.0]))
    assert summary['difference']['std'] is None
    assert '| -10.0 |   - |  -10.0 |' in report.table(summary, '')


def test_curves(report, tmp_path):
    write_run(tmp_path / 'p', [dict(loss=1 / e, epoch=e) for e in (1, 2, 3)])
    runs = {'scratch': [], 'pretrained': []}
    for arm, base in (('scratch', 20), ('pretrained', 60)):
        for seed in range(2):
            folder = tmp_path / f'{arm}{seed}'
            entries = [
                {'accuracy/top1': base + 5 * seed + e, 'step': e}
                for e in range(1, 4)
            ]
            write_run(folder, entries)
            runs[arm].append(folder)
    target = tmp_path / 'curves.png'
    report.draw_curves(tmp_path / 'p', runs, target)
    pixels = np.array(Image.open(target).convert('RGB')).astype(int)
    # Both lines are there, the higher curve above the other.
    heights = []
    for colour in ((194, 87, 26), (31, 95, 168)):
        right = pixels[40:-60, 480:640]
        rows, _ = np.nonzero((abs(right - colour) < 12).all(-1))
        assert len(rows) > 20
        heights.append(rows.mean())
    assert heights[0] > heights[1]
