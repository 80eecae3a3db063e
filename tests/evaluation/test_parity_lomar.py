"""Reference vectors of LoMaR, and that a wrong number in them is found."""

import json

import numpy as np
import pytest

from ropim_mm.evaluation.parity import run_directory


def test_every_public_case(shared):
    directory = shared / 'parity' / 'lomar'
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
        for group in ('grad/', 'intended_grad/'):
            stored = [n for n in arrays if n.startswith(group)]
            own = [n for n in compared if n.startswith(group)]
            assert len(own) == len(stored), (result.name, group)
        if 'pretrain' in result.name:
            assert {'loss', 'intended_loss', 'row_patches'} <= set(compared)
    (clipped,) = [r for r in results if 'clipped' in r.name]
    assert '3 windows refused' in {c.name for c in clipped.comparisons}


@pytest.fixture
def spoiled(shared, tmp_path):
    """Names of what is found wrong in a case with one changed array."""
    source = shared / 'parity' / 'lomar'
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


@pytest.mark.parametrize(
    ('name', 'array', 'change', 'found'),
    [
        ('pretrain_w4_n2_b4', 'loss', slightly, ['loss']),
        ('pretrain_w4_n2_b4', 'intended_loss', slightly, ['intended_loss']),
        ('pretrain_w4_n2_b4', 'pred', slightly, ['pred']),
        (
            'pretrain_w4_n2_b4',
            'intended_row_image',
            lambda a: a[::-1].copy(),
            ['intended_row_image'],
        ),
        (
            'pretrain_w7_n2_b3',
            'grad/blocks.0.attn.rpe_k.lookup_table_weight',
            lambda a: a * np.float32(1.1),  # small against the floor
            ['grad/backbone.layers.0.attn.rpe_k.lookup_table_weight'],
        ),
        (
            'pretrain_w7_n2_b3',
            'drawn_mask_ids',
            lambda a: a[:, ::-1].copy(),
            ['drawn_mask_ids'],
        ),
        ('finetune_gap_128', 'logits', slightly, ['logits']),
        (
            'irpe_buckets',
            'grid14/bucket_ids',
            lambda a: a.T.copy(),
            ['grid14/bucket_ids'],
        ),
        ('irpe_attention', 'rpe_output', slightly, ['rpe_output']),
        ('irpe_attention', 'y', slightly, ['y, grad', 'y, no grad']),
    ],
)
def test_a_wrong_number_is_found(spoiled, name, array, change, found):
    assert spoiled(name, array, change) == found


def test_a_curve_of_another_warm_up_is_found(spoiled):
    found = spoiled('lr_schedule', 'lr', lambda a: np.roll(a, 1, axis=0))
    assert 'released warm-up' in found
