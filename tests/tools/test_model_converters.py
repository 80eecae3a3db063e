"""The command lines, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def run(tool: str, *args: object) -> subprocess.CompletedProcess:
    script = ROOT / 'tools' / 'model_converters' / tool
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    return subprocess.run(
        [sys.executable, str(script), *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': path},
    )


@pytest.fixture(scope='module')
def official(shared, tmp_path_factory) -> Path:
    """A pretraining file with the names of a released one."""
    path = tmp_path_factory.mktemp('official') / 'ckpt_epoch_299.pth'
    case = shared / 'parity' / 'ropim' / 'pretrain_g4_k4_exact.npz'
    with np.load(case, allow_pickle=False) as arrays:
        weights = {
            name.removeprefix('state/'): torch.from_numpy(arrays[name])
            for name in arrays.files
            if name.startswith('state/')
        }
    torch.save({'model': weights, 'epoch': 299}, path)
    return path


@pytest.mark.slow
def test_convert_then_extract(official, tmp_path):
    converted = tmp_path / 'mm.pth'
    done = run('official_to_mm.py', 'ropim', official, converted)
    assert done.returncode == 0, done.stderr
    assert (
        f'{converted}: 54 tensors, 88,464 parameters, pretraining, '
        'BEiT-style, arch 32 wide, 3 blocks, 4 heads, patch 16x16, grid 4x4\n'
    ) in done.stdout
    assert 'may forbid commercial use' in done.stdout

    again = run('official_to_mm.py', 'ropim', official, converted)
    assert again.returncode == 1
    assert f'error: {converted} exists already' in again.stderr
    assert 'Traceback' not in again.stderr

    timm = tmp_path / 'timm.pth'
    timm.write_bytes(b'old')
    done = run(
        'extract_backbone.py', converted, timm, '--format', 'timm', '--force'
    )
    assert done.returncode == 0, done.stderr
    assert f'{timm}: 53 tensors, ' in done.stdout
    state = torch.load(timm, weights_only=True)
    assert 'blocks.2.attn.relative_position_bias_table' in state
    assert sorted(os.listdir(tmp_path)) == ['mm.pth', 'timm.pth']


@pytest.mark.slow
@pytest.mark.parametrize('tool', ['official_to_mm.py', 'extract_backbone.py'])
def test_hostile_file(tool, tmp_path):
    marker = tmp_path / 'code-was-run'

    class Call:
        def __reduce__(self) -> tuple:
            return os.system, (f'touch {marker}',)

    source, target = tmp_path / 'a.pth', tmp_path / 'b.pth'
    torch.save({'model': {'encoder.cls_token': torch.ones(1)}, 'c': Call()},
               source)  # fmt: skip
    method = ['ropim'] if tool == 'official_to_mm.py' else []
    done = run(tool, *method, source, target)
    assert done.returncode == 1
    assert f'error: {source} was refused: reading it would call ' in (
        done.stderr
    )
    assert 'posix.system' in done.stderr
    assert 'Traceback' not in done.stderr
    assert not marker.exists()
    assert os.listdir(tmp_path) == ['a.pth']


@pytest.mark.slow
def test_trusted_file(official, tmp_path):
    """The flag reaches the reader: the file's own call is made."""
    marker = tmp_path / 'code-was-run'

    class Call:
        def __reduce__(self) -> tuple:
            return os.system, (f'touch {marker}',)

    source, target = tmp_path / 'a.pth', tmp_path / 'b.pth'
    model = torch.load(official, weights_only=True)['model']
    torch.save({'model': model, 'config': Call()}, source)
    done = run(
        'official_to_mm.py', 'ropim', source, target, '--trust-checkpoint'
    )
    assert done.returncode == 0, done.stderr
    assert marker.exists()
    assert len(torch.load(target, weights_only=True)['state_dict']) == 54


@pytest.mark.slow
def test_method_without_converter(tmp_path):
    source, target = tmp_path / 'a.pth', tmp_path / 'b.pth'
    done = run('official_to_mm.py', 'simmim', source, target)
    assert done.returncode == 1
    assert "no converter for 'simmim'. Available: " in done.stderr
    assert not target.exists()
