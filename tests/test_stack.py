import importlib
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from ropim_mm import stack

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def installed(monkeypatch):
    """Replaces modules and distributions by ones of chosen versions.

    Call it with ``module=version`` (``None``: missing, an exception: raised by
    the import, a namespace: the module itself) and
    ``dists=dict(name=version)``.
    """

    def apply(dists=None, **modules):
        versions = dict(dists or {})

        def fake_import(name):
            value = modules[name]
            if value is None:
                raise ModuleNotFoundError(
                    f'No module named {name!r}', name=name
                )
            if isinstance(value, Exception):
                raise value
            if isinstance(value, types.SimpleNamespace):
                return value
            return types.SimpleNamespace(__version__=value)

        importer = types.SimpleNamespace(import_module=fake_import)
        monkeypatch.setattr(stack, 'importlib', importer)
        monkeypatch.setattr(stack, 'installed_version', versions.get)

    return apply


GOOD = dict(
    torch='2.11.0+cu130',
    torchvision='0.26.0',
    mmengine='0.10.12',
    mmcv='2.3.6',
    mmpretrain='1.3.6',
)


def message_of(call) -> str:
    with pytest.raises(stack.StackError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(
    'versions',
    [
        GOOD,
        GOOD | dict(torch='2.4.0+cu121', torchvision='0.19.0'),
        GOOD | dict(torch='2.15.0+cu132', torchvision='0.29.2'),
        # Upstream, with either release of MMCV.
        GOOD | dict(mmengine='0.10.7', mmcv='2.1.0', mmpretrain='1.2.0'),
        GOOD | dict(mmengine='0.10.7', mmcv='2.2.0', mmpretrain='1.2.0'),
    ],
)
def test_supported_versions_pass(installed, versions):
    installed(**versions)
    stack.check()


@pytest.mark.parametrize(
    ('module', 'found', 'supported', 'command'),
    [
        ('torch', '2.3.1', '>=2.4,<2.16', 'torch>=2.4,<2.16'),
        ('torch', '2.16.0', '>=2.4,<2.16', 'torch>=2.4,<2.16'),
        (
            'torchvision',
            '0.18.0',
            '>=0.19,<0.30',
            'torchvision>=0.19,<0.30',
        ),
        (
            'mmengine',
            '0.9.1',
            '>=0.10.7,<0.11',
            'onedl-mmengine>=0.10.8,<0.11',
        ),
        ('mmcv', '2.0.1', '>=2.1,<2.4', 'onedl-mmcv>=2.3.0,<2.4'),
        ('mmpretrain', '1.1.0', '>=1.2,<1.4', 'onedl-mmpretrain>=1.3.0,<1.4'),
    ],
)
def test_unsupported_version(installed, module, found, supported, command):
    installed(**(GOOD | {module: found}))
    assert message_of(stack.check) == (
        f'ropim_mm supports {module} {supported}, but found {found}. '
        f'Run: pip install "{command}"'
    )


def test_old_upstream_gets_upstream_command(installed):
    installed(dists={'mmengine': '0.9.1'}, **(GOOD | {'mmengine': '0.9.1'}))
    assert message_of(stack.check) == (
        'ropim_mm supports mmengine >=0.10.7,<0.11, but found 0.9.1 '
        '(installed by mmengine). Run: pip install "mmengine==0.10.7"'
    )


@pytest.mark.parametrize('module', sorted(GOOD))
def test_missing_package(installed, module):
    installed(**(GOOD | {module: None}))
    package = stack.PACKAGES[module]
    assert message_of(stack.check) == (
        f'ropim_mm needs {module} {package.versions}, and it is not '
        f'installed. Run: pip install "{package.default}"'
    )


def test_broken_import_of_another_module_is_not_renamed(installed):
    error = ModuleNotFoundError("No module named 'yapf'", name='yapf')
    installed(**(GOOD | {'mmengine': error}))
    with pytest.raises(ModuleNotFoundError, match='yapf'):
        stack.check()


def test_opencv_without_libgl(installed):
    error = ImportError(
        'libGL.so.1: cannot open shared object file: No such file or directory'
    )
    installed(dists={'opencv-python': '4.12.0.88'}, **(GOOD | {'mmcv': error}))
    assert message_of(stack.check) == (
        'ropim_mm cannot import mmcv: OpenCV does not find libGL.so.1. '
        'Install the build that needs no display: pip install '
        '--force-reinstall --no-deps opencv-python-headless==4.12.0.88'
    )


def test_torchvision_of_another_torch(installed):
    error = RuntimeError('operator torchvision::nms does not exist')
    installed(
        dists={'torch': '2.13.0+cpu', 'torchvision': '0.28.0'},
        **(GOOD | {'torchvision': error}),
    )
    message = message_of(stack.check)
    assert 'torchvision 0.28.0: it was not built for the installed torch ' in (
        message
    )
    assert '2.13.0+cpu (operator torchvision::nms does not exist)' in message
    assert '"torch==2.11.0" "torchvision==0.26.0"' in message


def test_rivals_are_named(installed):
    installed(
        dists={'mmcv-lite': '2.1.0', 'onedl-mmcv': '2.3.6'},
        **GOOD,
    )
    with pytest.warns(
        UserWarning, match='onedl-mmcv and mmcv-lite are both installed'
    ):
        stack.check()


def test_segmentation(installed):
    installed(mmseg='1.4.2')
    stack.require_segmentation()
    installed(mmseg=None)
    assert message_of(stack.require_segmentation) == (
        'ropim_mm needs mmseg >=1.2.2,<1.5, and it is not installed. '
        'Run: pip install "onedl-mmsegmentation>=1.3.0,<1.5"'
    )


def test_detection_without_operators(installed):
    missing = ModuleNotFoundError('No module named mmcv._ext')
    installed(
        dists={'onedl-mmcv': '2.3.6'}, mmdet='3.5.1', **{'mmcv._ext': missing}
    )
    message = message_of(stack.require_detection)
    assert "MMCV's compiled operators, which are not installed." in message
    assert 'make detection' in message
    assert 'pip install "setuptools>=80,<82"' in message
    assert (
        'MMCV_WITH_OPS=1 CFLAGS="-g0 -O1" pip install --no-build-isolation '
        '--no-deps --no-cache-dir --force-reinstall "onedl-mmcv==2.3.6"'
    ) in message


def test_detection_with_operators_of_another_torch(installed):
    error = ImportError('_ext.so: undefined symbol: _ZN3c10')
    installed(
        dists={'mmcv-lite': '2.1.0'}, mmdet='3.3.0', **{'mmcv._ext': error}
    )
    message = message_of(stack.require_detection)
    assert 'do not fit torch (_ext.so: undefined symbol: _ZN3c10)' in message
    # The distribution without operators cannot be the cure.
    assert message.endswith('"mmcv==2.1.0"')


def test_detection_with_operators(installed):
    installed(mmdet='3.5.1', **{'mmcv._ext': '1'})
    stack.require_detection()


@pytest.mark.parametrize('cuda', ['not available', '12.8'])
def test_operators_without_cuda_on_a_machine_with_a_gpu(
    installed, monkeypatch, cuda
):
    operators = types.SimpleNamespace(get_compiling_cuda_version=lambda: cuda)
    installed(mmdet='3.5.1', **{'mmcv._ext': operators})
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    stack.require_detection()
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    if cuda != 'not available':
        stack.require_detection()
        return
    message = message_of(stack.require_detection)
    assert 'compiled without CUDA, while there is a GPU' in message
    assert 'MMCV_WITH_OPS=1' in message


def test_operators_here_or_told_how():
    """On the real stack: the answer agrees with an import of the operators."""
    pytest.importorskip('mmdet')
    try:
        importlib.import_module('mmcv._ext')
    except ImportError:
        assert 'MMCV_WITH_OPS=1' in message_of(stack.require_detection)
    else:
        stack.require_detection()


def test_ranges_are_those_of_the_requirements():
    lines = {
        line
        for path in (ROOT / 'requirements').glob('*.txt')
        if path.name != 'constraints-tested.txt'
        for line in path.read_text().splitlines()
    }
    for package in stack.PACKAGES.values():
        assert package.default in lines


def test_tested_versions_are_supported(installed):
    text = (ROOT / 'requirements' / 'constraints-tested.txt').read_text()
    pinned = dict(re.findall(r'^([\w-]+)==([\w.+]+)$', text, re.MULTILINE))
    installed(
        torch=pinned['torch'],
        torchvision=pinned['torchvision'],
        mmengine=pinned['onedl-mmengine'],
        mmcv=pinned['onedl-mmcv'],
        mmpretrain=pinned['onedl-mmpretrain'],
        mmseg=pinned['onedl-mmsegmentation'],
        mmdet=pinned['onedl-mmdetection'],
        **{'mmcv._ext': '1'},
    )
    stack.check()
    stack.require_segmentation()
    stack.require_detection()


@pytest.mark.slow
def test_message_is_what_a_config_prints():
    """MMEngine must not replace the message by its own."""
    code = (
        'import mmengine\n'
        "mmengine.__version__ = '0.9.0'\n"
        'from mmengine.utils import import_modules_from_strings\n'
        "import_modules_from_strings(['ropim_mm'])\n"
    )
    run = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT
    )
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode == 1
    assert last.startswith(
        'ropim_mm.stack.StackError: ropim_mm supports mmengine '
        '>=0.10.7,<0.11, but found 0.9.0'
    )
