"""Wheels and editable installs carry what `mim` needs, and `mim` finds it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ropim_mm
from ropim_mm.version import __version__

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
CONFIG = 'ropim_vit-base-p16_8xb128-amp-coslr-300e_custom.py'


def run(*command, cwd, **env) -> str:
    """Run a command; its output is the message where it fails."""
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def files_below(folder: Path) -> set[str]:
    return {
        p.relative_to(folder).as_posix()
        for p in folder.rglob('*')
        if p.is_file() and '__pycache__' not in p.parts
    }


@pytest.fixture(scope='module')
def tree(tmp_path_factory) -> Path:
    """A copy of the source tree, in a folder with a space in its name."""
    copy = tmp_path_factory.mktemp('a tree') / 'ropim mm'
    copy.mkdir()
    names = subprocess.run(
        ['git', 'ls-files', '-z', '--cached', '--others']
        + ['--exclude-standard'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout
    # Without git, as in an unpacked sdist: what the build reads.
    files = [ROOT / name for name in names.split('\0') if name] or [
        ROOT / name
        for top in ('ropim_mm', 'configs', 'tools', 'requirements')
        for name in files_below(ROOT / top)
    ]
    for source in files:
        if source.is_file():
            target = copy / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    return copy


def build(source: Path, out: Path) -> Path:
    run(
        *(sys.executable, '-m', 'pip', 'wheel', '--no-deps'),
        *('--no-build-isolation', '--no-index', '-w', out, source),
        cwd=out.parent,
    )
    return next(out.glob('*.whl'))


@pytest.fixture(scope='module')
def wheel(tree, tmp_path_factory) -> Path:
    return build(tree, tmp_path_factory.mktemp('wheel'))


@pytest.fixture
def environment(tmp_path) -> Path:
    """The Python of a new environment that sees the packages of this one.

    Packages of this one that are installed as links are not followed, so
    `ropim_mm` is what the test installs.
    """
    run(sys.executable, '-m', 'venv', '--without-pip', 'venv', cwd=tmp_path)
    python = tmp_path / 'venv' / 'bin' / 'python'
    site = run(
        python,
        '-c',
        'import sysconfig; print(sysconfig.get_path("purelib"))',
        cwd=tmp_path,
    ).strip()
    (Path(site) / 'outer.pth').write_text(
        f'{sysconfig.get_path("purelib")}\n{sysconfig.get_path("platlib")}\n'
    )
    return python


def install(python: Path, *what) -> None:
    run(
        *(python, '-m', 'pip', 'install', '--no-deps', '--no-index'),
        *('--no-build-isolation', '--ignore-installed', *what),
        cwd=python.parent,
    )


def test_wheel_contents(tree, wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    top = {name.split('/')[0] for name in names}
    assert top == {
        'ropim_mm',
        '_ropim_mm_mim',
        f'ropim_mm-{__version__}.dist-info',
    }
    modules = {f'ropim_mm/{n}' for n in files_below(tree / 'ropim_mm')}
    assert modules <= names
    for folder in ('ropim_mm/.mim', '_ropim_mm_mim'):
        carried = {
            name.removeprefix(f'{folder}/')
            for name in names
            if name.startswith(f'{folder}/')
        }
        assert carried == (
            {f'configs/{n}' for n in files_below(tree / 'configs')}
            | {f'tools/{n}' for n in files_below(tree / 'tools')}
            | {'model-index.yml'}
        )


def test_wheel_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    metadata = archive.read(f'ropim_mm-{__version__}.dist-info/METADATA')
    lines = metadata.decode().splitlines()
    assert 'License: Apache-2.0' in lines
    requires = next(x for x in lines if x.startswith('Requires-Python'))
    assert set(requires.partition(': ')[2].split(',')) == {'>=3.10', '<3.13'}
    requirements = [x for x in lines if x.startswith('Requires-Dist')]
    needed = {x for x in requirements if 'extra ==' not in x}
    assert any('onedl-mmpretrain' in x for x in needed)
    # Detection, with its compiled operators, is only for those who ask.
    assert not any('onedl-mmdetection' in x for x in needed)
    assert any('onedl-mmdetection' in x for x in requirements)


def test_building_a_wheel_leaves_the_tree_alone(tree, wheel):
    assert not (tree / 'build').exists()
    assert list(tree.rglob(CONFIG)) == [tree / 'configs' / 'ropim' / CONFIG]


def test_wheel_from_sdist_is_the_same(tree, wheel, tmp_path):
    run(
        sys.executable,
        '-c',
        'from setuptools import build_meta; '
        f'build_meta.build_sdist({str(tmp_path)!r})',
        cwd=tree,
    )
    out = tmp_path / 'wheel'
    out.mkdir()
    again = build(next(tmp_path.glob('*.tar.gz')), out)
    assert (
        zipfile.ZipFile(again).namelist() == zipfile.ZipFile(wheel).namelist()
    )


def train_with_mim(python: Path, folder: Path) -> str:
    """Two pretraining iterations by the bare name of a config."""
    images = folder / 'images'
    images.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f'{i}.png')
    output = run(
        *(python, '-m', 'mim', 'train', 'ropim_mm', CONFIG),
        *('--work-dir', folder / 'work', '--cfg-options'),
        'model.backbone.arch=tiny',
        'model.backbone.img_size=32',
        'model.backbone.patch_size=4',
        'model.neck.embed_dims=192',
        'model.neck.patch_size=4',
        'model.head.patch_size=4',
        f'train_dataloader.dataset.data_root={images}',
        'train_dataloader.dataset.pipeline.1.scale=32',
        'train_dataloader.batch_size=2',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
        'default_hooks.logger.interval=1',
        'default_hooks.checkpoint.interval=1',
        'train_cfg.max_epochs=1',
        cwd=folder,
        # `mim` makes a folder there.
        HOME=str(folder),
    )
    assert 'Training finished successfully.' in output
    assert 'Epoch(train) [1][2/2]' in output
    assert (folder / 'work' / 'epoch_1.pth').is_file()
    return output


WHERE = """
import ropim_mm
from mmpretrain import list_models
print(ropim_mm.__file__)
print(ropim_mm.resource_root())
print(len(list_models('*ropim*')))
"""


def test_mim_train_from_wheel(environment, wheel, tmp_path):
    install(environment, wheel)
    module, root, models = run(
        environment, '-c', WHERE, cwd=tmp_path
    ).splitlines()[-3:]
    assert Path(module).is_relative_to(tmp_path / 'venv')
    assert Path(root) == Path(module).parent / '.mim'
    assert int(models) > 0
    output = train_with_mim(environment, tmp_path)
    assert f'_ropim_mm_mim/configs/ropim/{CONFIG}' in output
    assert '_ropim_mm_mim/tools/train.py' in output


def test_mim_train_from_editable_install(environment, tree, wheel, tmp_path):
    """After a wheel was built in the same tree, which must not matter."""
    install(environment, '-e', tree)
    module, root, models = run(
        environment, '-c', WHERE, cwd=tmp_path
    ).splitlines()[-3:]
    assert Path(module).is_relative_to(tree)
    assert Path(root) == tree
    assert int(models) > 0
    output = train_with_mim(environment, tmp_path)
    assert f'{tree}/configs/ropim/{CONFIG}' in output
    assert f'{tree}/tools/train.py' in output


def test_resource_root_of_this_checkout():
    assert ropim_mm.resource_root() == ROOT
    assert (ROOT / 'configs' / 'ropim' / CONFIG).is_file()
