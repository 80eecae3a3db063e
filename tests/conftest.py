"""Settings and fixtures for all tests."""

import logging
import os
import signal

# Tiny tensors on busy cores: more threads make every step slower. Set before
# torch is imported, and inherited by the processes that tests start.
os.environ['OMP_NUM_THREADS'] = '1'

from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='session')
def shared() -> Path:
    """The folder with reference vectors and sample images.

    It lies beside the repository, or where the environment variable
    ``ROPIM_MM_SHARED`` says.
    """
    path = Path(os.environ.get('ROPIM_MM_SHARED', ROOT.parent / 'shared'))
    if not path.is_dir():
        pytest.skip(
            f'no folder {path}: it holds the reference vectors and sample '
            'images; set ROPIM_MM_SHARED to where it is'
        )
    return path


@pytest.fixture(autouse=True)
def no_default_scope():
    """Runners leave their default scope behind, for all that follows."""
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(autouse=True)
def no_log_files():
    """Loggers of runs, too, which keep part of what is said for their file."""
    yield
    for logger in MMLogger._instance_dict.values():
        for handler in list(logger.handlers):
            if isinstance(handler, logging.FileHandler):
                logger.removeHandler(handler)
                handler.close()


@pytest.fixture(autouse=True, scope='session')
def interruptible():
    """As from a terminal: what runs in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked ``gpu`` where there is none."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason='needs a CUDA device')
    for item in items:
        if 'gpu' in item.keywords:
            item.add_marker(skip)
