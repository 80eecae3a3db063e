"""Reference vectors of ConMIM, and that a wrong number in them is found."""

import json
import shutil

import numpy as np
import pytest

from ropim_mm.evaluation.parity import run_directory


def test_every_public_case(shared):
    directory = shared / 'parity' / 'conmim'
    manifest = json.loads((directory / 'manifest.json').read_text())
    results = list(run_directory(directory))
    assert [r.name for r in results] == list(manifest['cases'])
    bad = {
        r.name: [c.name for c in r.comparisons if not c.ok] or r.error
        for r in results
        if not r.ok
    }
    assert not bad
    assert not any(r.unused for r in results)
    for result in results:
        arrays = manifest['cases'][result.name]['arrays']
        compared = [c.name for c in result.comparisons]
        for group in ('grad/', 'teacher_after/', 'student_buffers_after/'):
            stored = [n for n in arrays if n.startswith(group)]
            stored = [n for n in stored if 'lm_head' not in n]
            own = [n for n in compared if n.startswith(group)]
            assert len(own) == len(stored), (result.name, group)


@pytest.fixture
def copied(shared, tmp_path):
    """Cases that can be spoiled."""
    source = shared / 'parity' / 'conmim'
    manifest = json.loads((source / 'manifest.json').read_text())

    def copy(name, **factors):
        manifest['cases'] = {name: manifest['cases'][name]}
        (tmp_path / 'manifest.json').write_text(json.dumps(manifest))
        with np.load(source / f'{name}.npz') as file:
            arrays = {k: file[k] for k in file.files}
        for key, change in factors.items():
            (found,) = [k for k in arrays if k == key.replace('__', '/')]
            arrays[found] = change(arrays[found])
        np.savez(tmp_path / f'{name}.npz', **arrays)
        (result,) = run_directory(tmp_path)
        assert not result.error
        return [c.name for c in result.comparisons if not c.ok]

    yield copy
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize(
    ('array', 'factor', 'found'),
    [
        ('loss', 1.0001, ['loss']),
        ('logits', 1.001, ['logits']),
        ('feat_full', 1.001, ['feat_full']),
        (
            'teacher_after/projectors.1.running_mean',
            0.9,
            ['teacher_after/neck.bn0.running_mean'],
        ),
        (
            'teacher_after/cls_token',
            1.001,
            ['teacher_after/backbone.cls_token'],
        ),
        ('grad/projectors.3.weight', 1.001, ['grad/neck.fc1.weight']),
    ],
)
def test_a_wrong_number_is_found(copied, array, factor, found):
    key = array.replace('/', '__')
    change = {key: lambda a: a * np.float32(factor)}
    assert copied('pretrain_g4_mps32', **change) == found


@pytest.mark.parametrize(
    'case',
    ['pretrain_g4_mps32', 'pretrain_g14_mps', 'pretrain_g4_uneven_abspos'],
)
def test_a_gradient_of_0_is_judged_by_what_cancels(copied, case):
    """A BatchNorm takes away what the bias before it adds."""
    name, largest = 'grad/backbone.ln1.bias', {}

    def add(share):
        def change(array):
            return array + np.float32(share * largest['weight'])

        return change

    def look(array):
        largest['weight'] = np.abs(array).max()
        return array

    # Other rounding, then a gradient that is not 0.
    for share, found in ((-5e-6, []), (1e-4, [name])):
        key = {'grad/norm.weight': look, 'grad/norm.bias': add(share)}
        assert copied(case, **key) == found


def test_another_momentum_is_found(copied):
    wrong = copied('schedules', momentum=lambda a: a.clip(0, 0.9999))
    assert wrong == ['momentum']


def test_another_mask_is_found(copied):
    assert copied('masks', random0__masks=lambda a: a[:, ::-1].copy())
