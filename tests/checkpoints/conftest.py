"""Files that the tests of checkpoints share."""

import builtins
import logging
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger

from ropim_mm.checkpoints.official import convert_state_dict


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Callable, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


@pytest.fixture
def log(caplog):
    """What MMEngine's logger says."""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that exists only if a hostile checkpoint had its way."""
    return tmp_path / 'code-was-run'


@pytest.fixture(
    params=['system', 'eval', 'nested', 'legacy', 'protocol 4', 'getattr']
)
def hostile(request, tmp_path: Path, marker: Path) -> tuple[Path, str]:
    """A checkpoint that runs code when unpickled, and what it calls."""
    weights = {'encoder.cls_token': torch.ones(1, 1, 4)}
    system = Call(os.system, f'touch {marker}')
    opened = Call(builtins.eval, f'open({str(marker)!r}, "w")')
    reached = Call(getattr, torch.Tensor, '__class__')
    content, name, options = {
        'system': (system, 'posix.system', {}),
        'eval': (opened, 'builtins.eval', {}),
        'nested': ({'DATA': [1, {'x': opened}]}, 'builtins.eval', {}),
        'legacy': (
            system,
            'posix.system',
            {'_use_new_zipfile_serialization': False},
        ),
        'protocol 4': (system, 'posix.system', {'pickle_protocol': 4}),
        'getattr': (reached, 'builtins.getattr', {}),
    }[request.param]
    path = tmp_path / 'hostile.pth'
    torch.save({'model': weights, 'config': content}, path, **options)
    return path, name


@pytest.fixture
def yacs_node():
    """A config as yacs pickles it, while no yacs is installed to read it."""
    if 'yacs' in sys.modules:
        pytest.skip('yacs is installed')
    package, module = types.ModuleType('yacs'), types.ModuleType('yacs.config')

    class CfgNode(dict):
        def __init__(self, items: dict) -> None:
            super().__init__(items)
            self.__dict__['__immutable__'] = True
            self.__dict__['__deprecated_keys__'] = set()
            self.__dict__['__renamed_keys__'] = {}

    CfgNode.__module__, CfgNode.__qualname__ = 'yacs.config', 'CfgNode'
    module.CfgNode = CfgNode
    sys.modules.update({'yacs': package, 'yacs.config': module})
    model = CfgNode({'NAME': 'ropim', 'SIZES': [224, 16]})
    yield lambda content, path: _save_and_forget(
        {**content, 'config': CfgNode({'MODEL': model, 'LR': 0.1})}, path
    )
    _forget_yacs()


def _save_and_forget(content: dict, path: Path) -> None:
    torch.save(content, path)
    _forget_yacs()


def _forget_yacs() -> None:
    sys.modules.pop('yacs', None)
    sys.modules.pop('yacs.config', None)


@pytest.fixture(scope='session')
def released(shared: Path) -> Callable[[str, str], dict]:
    """Weights of released models: case of the vectors, group of arrays."""

    def load(case: str, group: str) -> dict[str, torch.Tensor]:
        path = shared / 'parity' / 'ropim' / f'{case}.npz'
        with np.load(path, allow_pickle=False) as arrays:
            return {
                name[len(group) :]: torch.from_numpy(arrays[name])
                for name in arrays.files
                if name.startswith(group)
            }

    return load


ARCH = dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=128)


@pytest.fixture
def arch() -> dict:
    """Architecture of the reference vectors."""
    return dict(ARCH)


@pytest.fixture
def pretrained(released, tmp_path: Path) -> Path:
    """A pretraining checkpoint in our format: 4x4 tokens of 16 pixels."""
    weights = released('finetune_interp_64_to_96', 'ckpt/')
    path = tmp_path / 'pretrained.pth'
    torch.save(
        dict(meta={}, state_dict=convert_state_dict('ropim', weights)), path
    )
    return path
