"""The demo's modules, which are no package."""

import importlib
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / 'demo'


@pytest.fixture(scope='session')
def demo():
    """``demo('jobs')`` imports ``demo/jobs.py``."""
    sys.path.insert(0, str(DEMO))
    yield importlib.import_module
    sys.path.remove(str(DEMO))
