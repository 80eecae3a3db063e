import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools' / 'analysis_tools' / 'verify_parity.py'


def run(directory):
    return subprocess.run(
        [sys.executable, str(TOOL), str(directory)],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_public_cases_pass(shared):
    done = run(shared / 'parity' / 'ropim')
    assert done.returncode == 0, done.stdout[-3000:]
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith('11 cases passed, 0 failed')
    assert 'grad/backbone.layers.0.attn.qkv.weight' in done.stdout


def test_a_case_that_does_not_run_fails(tmp_path):
    np.savez(tmp_path / 'odd.npz', x=np.zeros(1))
    manifest = dict(method='ropim', cases=dict(odd=dict(file='odd.npz')))
    (tmp_path / 'manifest.json').write_text(json.dumps(manifest))
    done = run(tmp_path)
    assert done.returncode == 1
    assert 'odd: FAILED' in done.stdout
    assert '0 cases passed, 1 failed' in done.stdout


def test_missing_directory(tmp_path):
    done = run(tmp_path / 'nowhere')
    assert done.returncode == 1
    assert 'manifest.json not found' in done.stderr
    assert 'Traceback' not in done.stderr
