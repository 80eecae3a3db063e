"""Reference vectors of R-MAE, and that a wrong number in them is found."""

import json

import numpy as np
import pytest

from ropim_mm.evaluation.parity import rmae, run_directory
from ropim_mm.evaluation.parity.cases import Arrays, Case
from ropim_mm.evaluation.parity.common import learning_rates


def test_every_public_case(shared):
    directory = shared / 'parity' / 'rmae'
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
        stored = [n for n in arrays if n.startswith('grad/')]
        assert len([n for n in compared if n.startswith('grad/')]) == (
            len(stored)
        )


@pytest.fixture
def spoiled(shared, tmp_path):
    """Names of what does not agree when one array is changed."""
    source = shared / 'parity' / 'rmae'
    manifest = json.loads((source / 'manifest.json').read_text())

    def run(name, array, change):
        info = manifest['cases'][name]
        only = dict(manifest, cases={name: info})
        (tmp_path / 'manifest.json').write_text(json.dumps(only))
        with np.load(source / f'{name}.npz') as file:
            arrays = {k: file[k] for k in file.files}
        arrays[array] = change(arrays[array])
        np.savez(tmp_path / f'{name}.npz', **arrays)
        (result,) = run_directory(tmp_path)
        assert not result.error
        return [c.name for c in result.comparisons if not c.ok]

    return run


def slightly(array):
    return array * array.dtype.type(1.001)


def other_way(array):
    return array[::-1].copy()


@pytest.mark.parametrize(
    ('name', 'array', 'change', 'found'),
    [
        ('pretrain_random_mae', 'loss', slightly, ['loss']),
        ('pretrain_random_mae', 'pred', slightly, ['pred']),
        ('pretrain_random_mae', 'memory', slightly, ['memory']),
        ('pretrain_random_mae', 'noise', other_way, ['shuffle_ids']),
        (
            'pretrain_two_ratios',
            'region_latent',
            slightly,
            ['region_latent'],
        ),
        ('pretrain_two_ratios', 'region_mask', other_way, ['region_mask']),
        (
            'pretrain_random_regiononly',
            'pred_region',
            slightly,
            ['pred_region'],
        ),
        (
            'pretrain_random_regiononly',
            'grad/region_dec_blocks.0.mlp.fc1.weight',
            lambda a: a * np.float32(1.1),  # small against the floor
            ['grad/region_branch.expansion.ffn.layers.0.0.weight'],
        ),
        ('process_mask', 'case2/region', other_way, ['case2: regions']),
        (
            'fh_coffee',
            'fh_500_1000_1500',
            other_way,
            ['fh_500_1000_1500'],
        ),
        ('lr_schedule', 'lr_used', slightly, ['released warm-up', 'cosine',
                                              'peak']),
    ],
)  # fmt: skip
def test_a_wrong_number_is_found(spoiled, name, array, change, found):
    assert spoiled(name, array, change) == found


def test_a_schedule_without_warm_up():
    curve = learning_rates(1e-3, 0.0, 12, 0)[:, 0]
    info = dict(config=dict(lr=1e-3, T_max=12, warmup=0))

    def failed(curve):
        case = Case('none', info, Arrays(lr_used=curve))
        return [c.name for c in rmae.schedule(case) if not c.ok]

    assert failed(curve) == []
    assert failed(curve * 1.001) == ['cosine', 'peak']
