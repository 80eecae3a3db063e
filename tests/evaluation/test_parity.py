import json
import shutil

import numpy as np
import pytest
import torch

from ropim_mm.evaluation.parity import load_cases, run_directory
from ropim_mm.evaluation.parity.compare import close, close_in_scale, exact


def test_every_public_ropim_case(shared):
    directory = shared / 'parity' / 'ropim'
    results = list(run_directory(directory))
    manifest = json.loads((directory / 'manifest.json').read_text())
    assert [r.name for r in results] == list(manifest['cases'])
    bad = {
        r.name: [c.name for c in r.comparisons if not c.ok] or r.error
        for r in results
        if not r.ok
    }
    assert not bad
    assert not any(r.unused for r in results)
    compared = {r.name: {c.name for c in r.comparisons} for r in results}
    # Every gradient that is stored is compared.
    for name, info in manifest['cases'].items():
        stored = [k for k in info['arrays'] if k.startswith('grad/')]
        grads = [c for c in compared[name] if c.startswith('grad/')]
        assert len(grads) == len(stored), name


@pytest.fixture
def copied(shared, tmp_path):
    """One case that can be spoiled."""
    source = shared / 'parity' / 'ropim'
    manifest = json.loads((source / 'manifest.json').read_text())
    name = 'pretrain_g4_k2_ratio0p14'
    manifest['cases'] = {name: manifest['cases'][name]}
    (tmp_path / 'manifest.json').write_text(json.dumps(manifest))
    shutil.copy(source / f'{name}.npz', tmp_path)
    return tmp_path, manifest, name


def rewrite(path, **changes):
    with np.load(path) as file:
        arrays = {k: file[k] for k in file.files}
    path.unlink()
    np.savez(path, **(arrays | changes))


@pytest.mark.parametrize(
    ('array', 'factor'),
    [
        ('grad/encoder.blocks.1.attn.qkv.weight', 1.05),
        ('reconstruction', 1.0001),
        ('loss', 1.0001),
        ('sketch_matrix', -1.0),
    ],
)
def test_a_wrong_number_is_found(copied, array, factor):
    path, _, name = copied
    file = path / f'{name}.npz'
    with np.load(file) as stored:
        spoiled = stored[array] * np.float32(factor)
    rewrite(file, **{array: spoiled})
    (result,) = run_directory(path)
    assert not result.ok and not result.error
    assert sum(not c.ok for c in result.comparisons) == 1


def test_an_array_that_nothing_compares_is_told(copied):
    path, _, name = copied
    rewrite(path / f'{name}.npz', surprise=np.zeros(3))
    (result,) = run_directory(path)
    assert result.ok and result.unused == ['surprise']


def test_a_case_of_no_known_kind_is_not_passed_over(copied):
    path, manifest, name = copied
    np.savez(path / f'{name}.npz', something=np.zeros(2))
    manifest['cases'][name]['arrays'] = {}
    (path / 'manifest.json').write_text(json.dumps(manifest))
    (result,) = run_directory(path)
    assert not result.ok
    assert 'no known kind of ROPIM case' in result.error


def test_directory_without_manifest(tmp_path):
    with pytest.raises(FileNotFoundError, match='manifest.json not found'):
        load_cases(tmp_path)


def test_unknown_method(tmp_path):
    (tmp_path / 'manifest.json').write_text('{"method": "x", "cases": {}}')
    with pytest.raises(ValueError, match="method 'x'; expected one of"):
        list(run_directory(tmp_path))


def test_missing_array(copied):
    path, _, name = copied
    with np.load(path / f'{name}.npz') as file:
        arrays = {k: file[k] for k in file.files if k != 'loss'}
    np.savez(path / f'{name}.npz', **arrays)
    with pytest.raises(ValueError, match=r"lacks the arrays \['loss'\]"):
        load_cases(path)


def test_comparisons():
    one = torch.ones(2)
    assert close('a', one, one * (1 + 5e-6)).ok
    assert not close('a', one, one * (1 + 5e-5)).ok
    assert not close('a', torch.full((2,), float('nan')), one).ok
    assert not close('a', torch.ones(3), one).ok
    small, large = torch.tensor([1e-4, 10.0]), torch.tensor([1.5e-4, 10.0])
    assert close_in_scale('a', small, large).ok
    assert 'its own size 3.3e-01' in close_in_scale('a', small, large).note
    assert not close_in_scale('a', small + 1.1e-4, large).ok
    assert not close('a', small, large).ok
    assert exact('a', [1], [1]).ok and not exact('a', [1], [2]).ok
    assert not exact('a', torch.ones(2), torch.zeros(2)).ok
