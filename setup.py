"""Build script: what is installed, and where `mim` finds configs and tools."""

import re
import shutil
import tempfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# What a wheel carries besides the modules. In a source tree, and so in an
# editable install, these are used where they are.
RESOURCES = ('configs', 'tools', 'model-index.yml')
# `ropim_mm/.mim` is where OpenMMLab packages keep their resources, and where
# `ropim_mm` itself looks for them. OneDL's `mim`, however, takes the first
# path component of the first installed file for the package's folder. pip
# sorts that list, and `ropim_mm-<version>.dist-info/` precedes `ropim_mm/`. So
# there is a second copy in a folder whose name precedes both.
WHEEL_FOLDERS = ('ropim_mm/.mim', '_ropim_mm_mim')

# Removed when the process ends.
_BUILD_BASE = tempfile.TemporaryDirectory(prefix='ropim_mm-build-')


class Build(build):
    """Build outside the source tree.

    ``mim`` searches the whole root of an editable install for a config of a
    given name. A ``build/`` folder left behind by a wheel would hold a second
    file of every name, which ``mim`` refuses.
    """

    def initialize_options(self) -> None:
        super().initialize_options()
        self.build_base = _BUILD_BASE.name


class BuildPy(build_py):
    """Copy configs, tools and the model index into a wheel.

    An editable install gets no copy and no link, for the reason that
    :class:`Build` gives.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for folder in WHEEL_FOLDERS:
            for name in RESOURCES:
                target = Path(self.build_lib, folder, name)
                source = ROOT / name
                if source.is_dir():
                    shutil.copytree(
                        source,
                        target,
                        ignore=shutil.ignore_patterns('__pycache__'),
                        dirs_exist_ok=True,
                    )
                else:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(source, target)


def version() -> str:
    text = (ROOT / 'ropim_mm' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"^__version__ = '(.+)'$", text, re.MULTILINE).group(1)


def requirements(name: str) -> list[str]:
    """The lines of ``requirements/<name>.txt`` that are not comments."""
    path = ROOT / 'requirements' / f'{name}.txt'
    lines = path.read_text(encoding='utf-8').splitlines()
    return [x for x in map(str.strip, lines) if x and not x.startswith('#')]


EXTRAS = ('segmentation', 'detection', 'demo', 'tests')

setup(
    name='ropim_mm',
    version=version(),
    description=(
        'ROPIM, LoMaR, R-MAE and ConMIM pretraining of vision transformers '
        'for MMPretrain, MMSegmentation and MMDetection'
    ),
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='The ropim_mm contributors',
    license='Apache-2.0',
    keywords='self-supervised learning, vision transformer, OpenMMLab',
    classifiers=[
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    python_requires='>=3.10,<3.13',
    packages=find_packages(include=['ropim_mm', 'ropim_mm.*']),
    install_requires=requirements('mminstall') + requirements('runtime'),
    extras_require={name: requirements(name) for name in EXTRAS},
    cmdclass={'build': Build, 'build_py': BuildPy},
    zip_safe=False,
)
