"""The packages underneath: supported versions, and what to do about others.

Two families of OpenMMLab packages give the same modules ``mmengine``,
``mmcv`` and ``mmpretrain``: OneDL's (``onedl-mmengine``, ...; maintained, the
default) and upstream's (``mmengine`` 0.10.7, ``mmcv`` or ``mmcv-lite`` 2.1 and
2.2, ``mmpretrain`` 1.2.0), accepted for pretraining and classification. The
checks look at the modules, since these are what runs.

What upstream needs on today's PyTorch, and why nothing here switches it on:

* Its ``torch.load`` calls predate PyTorch 2.6, where unpickling became
  restricted, and fail on its own training checkpoints. The variable
  ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1`` lifts the restriction for everything,
  which lets any file run code. It is not set here, and it is not needed:
  ``ropim_mm.checkpoints.reading`` reads checkpoints for both families.
* It resolves ``_base_ = '<package>::...'`` with ``pkg_resources``, which
  setuptools 82 removed. The configs of this project use no such paths. For
  configs that do, run ``pip install "setuptools<82"``.
"""

import importlib
import importlib.metadata
import warnings
from dataclasses import dataclass
from types import ModuleType


class StackError(RuntimeError):
    """An installed package is missing or of an unsupported version.

    Not an ``ImportError``: MMEngine replaces those by "Failed to import
    ropim_mm" when the package is in ``custom_imports``.
    """


@dataclass(frozen=True)
class Package:
    """A module that must be there, in which versions, and who provides it.

    Attributes:
        module: Its name for ``import``.
        versions: Supported values of its ``__version__``.
        default: The requirement that pip gets when nothing is installed; the
            same as in ``requirements/``.
        upstream: The requirement when upstream's package is what is
            installed; empty if there is none.
    """

    module: str
    versions: str
    default: str
    upstream: str = ''


PACKAGES = {
    package.module: package
    for package in (
        Package('torch', '>=2.4,<2.16', 'torch>=2.4,<2.16'),
        Package('torchvision', '>=0.19,<0.30', 'torchvision>=0.19,<0.30'),
        Package(
            'mmengine',
            '>=0.10.7,<0.11',
            'onedl-mmengine>=0.10.8,<0.11',
            'mmengine==0.10.7',
        ),
        Package(
            'mmcv',
            '>=2.1,<2.4',
            'onedl-mmcv>=2.3.0,<2.4',
            'mmcv-lite>=2.1,<2.3',
        ),
        Package(
            'mmpretrain',
            '>=1.2,<1.4',
            'onedl-mmpretrain>=1.3.0,<1.4',
            'mmpretrain==1.2.0',
        ),
        Package(
            'mmseg',
            '>=1.2.2,<1.5',
            'onedl-mmsegmentation>=1.3.0,<1.5',
            'mmsegmentation==1.2.2',
        ),
        Package(
            'mmdet',
            '>=3.3,<3.6',
            'onedl-mmdetection>=3.4.0,<3.6',
            'mmdet==3.3.0',
        ),
    )
}

# Distributions that install the same module, and so overwrite each other.
RIVALS = {
    'mmengine': ('onedl-mmengine', 'mmengine'),
    'mmcv': ('onedl-mmcv', 'mmcv', 'mmcv-lite', 'mmcv-full'),
    'mmpretrain': ('onedl-mmpretrain', 'mmpretrain'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
}


def installed_version(distribution: str) -> str | None:
    """The version of a distribution, or ``None`` where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _import(package: Package) -> ModuleType:
    try:
        return importlib.import_module(package.module)
    except ModuleNotFoundError as error:
        if error.name != package.module:
            raise
        raise StackError(
            f'ropim_mm needs {package.module} {package.versions}, and it is '
            f'not installed. Run: pip install "{package.default}"'
        ) from None
    except ImportError as error:
        # opencv-python, which other packages require by name, links against
        # a graphics library that servers and containers lack. Its headless
        # build has the same files without that, and the last one installed
        # wins.
        if 'libGL' not in str(error):
            raise
        raise StackError(
            f'ropim_mm cannot import {package.module}: OpenCV does not find '
            f'{str(error).partition(":")[0]}. Install the build that needs no '
            'display: pip install --force-reinstall --no-deps '
            'opencv-python-headless'
            + _exactly(installed_version('opencv-python'))
        ) from error


def _exactly(version: str | None) -> str:
    return f'=={version}' if version else ''


def _check(package: Package) -> None:
    # In use only here, and installed by MMEngine: were it missing, MMEngine
    # is, and the message about that is the better one.
    try:
        from packaging.specifiers import SpecifierSet
    except ModuleNotFoundError:
        _import(PACKAGES['mmengine'])
        raise

    module = _import(package)
    owners = [d for d in RIVALS.get(package.module, ()) if _owns(d)]
    if len(owners) > 1:
        warnings.warn(
            f'{" and ".join(owners)} are both installed and overwrite each '
            f"other's files in {package.module}/. Run: pip uninstall -y "
            f'{" ".join(owners)} && pip install "{package.default}"',
            stacklevel=3,
        )
    found = module.__version__
    if SpecifierSet(package.versions).contains(found, prereleases=True):
        return
    from_upstream = owners and not owners[0].startswith('onedl-')
    cure = package.upstream if from_upstream else package.default
    source = f' (installed by {", ".join(owners)})' if owners else ''
    raise StackError(
        f'ropim_mm supports {package.module} {package.versions}, but found '
        f'{found}{source}. Run: pip install "{cure}"'
    )


def _owns(distribution: str) -> bool:
    return installed_version(distribution) is not None


def _check_torchvision() -> None:
    try:
        _check(PACKAGES['torchvision'])
    except (RuntimeError, OSError) as error:
        if isinstance(error, StackError):
            raise
        # A torchvision for another PyTorch, or for another kind of build of
        # it (CPU, CUDA), imports PyTorch operators that are not there.
        raise StackError(
            'ropim_mm cannot import torchvision '
            f'{installed_version("torchvision")}: it was not built for the '
            f'installed torch {installed_version("torch")} ({error}). Install '
            'the two together from one source: pip install --force-reinstall '
            '"torch==2.11.0" "torchvision==0.26.0"'
        ) from error


def check() -> None:
    """Check what pretraining and classification need.

    MMCV's compiled operators are not needed for these.

    Raises:
        StackError: A package is missing or of an unsupported version. The
            message names it, what was found, what is supported and the
            command that installs it.
    """
    _check(PACKAGES['torch'])
    _check_torchvision()
    # MMPretrain asserts the versions of the other two when it is imported,
    # with less to say about it.
    _check(PACKAGES['mmengine'])
    _check(PACKAGES['mmcv'])
    _check(PACKAGES['mmpretrain'])


def require_segmentation() -> None:
    """Check what semantic segmentation needs besides :func:`check`.

    Raises:
        StackError: MMSegmentation is missing or of an unsupported version.
    """
    _check(PACKAGES['mmseg'])


def require_detection() -> None:
    """Check what detection needs besides :func:`check`.

    Raises:
        StackError: MMDetection is missing or of an unsupported version, or
            MMCV's compiled operators are missing, were built for another
            PyTorch, or without CUDA where there is a GPU.
    """
    _check(PACKAGES['mmdet'])
    try:
        operators = importlib.import_module('mmcv._ext')
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError):
            found = 'which are not installed'
        else:
            # pip keeps wheels it built without a note of the PyTorch they
            # were built for, hence --no-cache-dir in the command.
            found = f'and the installed ones do not fit torch ({error})'
        raise _without_operators(found) from error
    # They would do until the first image is on the GPU.
    import torch

    if _built_without_cuda(operators) and torch.cuda.is_available():
        raise _without_operators(
            'and the installed ones were compiled without CUDA, while there '
            'is a GPU'
        )


def _built_without_cuda(operators: ModuleType) -> bool:
    version = getattr(operators, 'get_compiling_cuda_version', None)
    return version is not None and version() == 'not available'


def _without_operators(found: str) -> StackError:
    owner = next((d for d in RIVALS['mmcv'] if _owns(d)), 'onedl-mmcv')
    version = installed_version(owner)
    # mmcv-lite is mmcv without operators.
    target = 'mmcv' if owner == 'mmcv-lite' else owner
    return StackError(
        f"MMDetection needs MMCV's compiled operators, {found}. In a "
        'checkout of this project, `make detection` builds them into '
        '.venv (it takes minutes and needs a C++ compiler, for GPUs the CUDA '
        'toolkit too). Elsewhere run:\n'
        '  pip install "setuptools>=80,<82" wheel packaging ninja psutil\n'
        '  MMCV_WITH_OPS=1 CFLAGS="-g0 -O1" pip install '
        '--no-build-isolation --no-deps --no-cache-dir '
        f'--force-reinstall "{target}{_exactly(version)}"'
    )
