"""What all tools of ``tools/dataset_converters`` have in common."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = sorted((ROOT / 'tools/dataset_converters').glob('*.py'))

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('tool', TOOLS, ids=lambda tool: tool.stem)
def test_interrupted_while_it_is_imported(tool, tmp_path):
    # MMEngine is imported early; in its place, a key press.
    (tmp_path / 'mmengine.py').write_text(
        'import os, signal, time\n'
        'print("importing", flush=True)\n'
        'os.kill(os.getpid(), signal.SIGINT)\n'
        'time.sleep(60)\n'
    )
    done = subprocess.run(
        [sys.executable, tool, 'IMAGES', 'OUT'],
        env=dict(os.environ, PYTHONPATH=f'{tmp_path}{os.pathsep}{ROOT}'),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == 'importing\n'
    assert done.stderr == ''
    assert done.returncode == -signal.SIGINT
