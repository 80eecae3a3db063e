"""create_fh_masks.py from the command line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TOOL = 'dataset_converters/create_fh_masks.py'

pytestmark = pytest.mark.slow


def test_shards_then_verification(call, images, tmp_path):
    out = tmp_path / 'out'
    settings = ('--scales', '50,200', '--min-sizes', '20,60', '--workers', 2)
    text = call(TOOL, images, out, *settings, '--shard', '1/2')
    assert '8 images: maps of 8 made, of 0 there before' in text
    assert 'times smaller than raw uint8 arrays' in text
    assert '8/8' in text and 'image/s' in text  # the bar, though no terminal
    settings = json.loads((out / 'fh_masks.json').read_text())
    assert settings == dict(scales=[50, 200], min_sizes=[20, 60], sigma=0.8)

    (out / 'class1/03.png').write_bytes(b'')
    text = call(TOOL, images, out, '--verify', status=1)
    assert 'broken: maps of class1/03.png: the file is empty' in text
    assert 'missing: maps of class0/00.png' in text
    assert '16 images: maps of 7 are in order, 8 missing, 1 broken' in text

    text = call(TOOL, images, out, '--repair')
    assert '16 images: maps of 9 made, of 7 there before' in text


def test_names_that_are_no_text_and_images_left_out(call, images, tmp_path):
    # A copy: the folder is shared by all tests of this session.
    images = shutil.copytree(images, tmp_path / 'images')
    out = tmp_path / 'out'
    name = os.fsencode(images) + b'/class0/\xe9.png'
    with open(name, 'wb') as file:
        file.write(b'no image')
    settings = ('--scales', '50', '--min-sizes', '20', '--workers', 0)
    text = call(TOOL, images, out, *settings, '--on-error', 'skip')
    assert r'unreadable image: class0/\udce9.png: not an image' in text
    text = call(TOOL, images, out, '--verify', '--workers', 0)
    assert r'unreadable image: class0/\udce9.png: not an image' in text
    assert 'maps of 16 are in order, 0 missing, 0 broken; 1 images' in text
    assert '--repair' not in text
    (out / 'class0' / os.fsdecode(b'\xe9.png')).write_bytes(b'')
    text = call(TOOL, images, out, '--verify', '--workers', 0, status=1)
    assert '--repair' not in text
    assert '1 of the broken maps are of images that cannot be read' in text


def test_interrupted_it_says_how_to_go_on(tmp_path):
    images, out = tmp_path / 'images', tmp_path / 'out'
    images.mkdir()
    rng = np.random.default_rng(0)
    for i in range(200):
        noise = rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)
        Image.fromarray(noise).save(images / f'{i}.png', compress_level=1)
    process = subprocess.Popen(
        [sys.executable, ROOT / 'tools' / TOOL, images, out, '--workers', '2'],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(list(out.glob('*.png'))) < 2:
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 130, text
    assert 'stopped; the same command goes on from here' in text
    assert 'Traceback' not in text
    assert not list(out.glob('.*'))
