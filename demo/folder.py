"""The work folder of a demo, and where its processes run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Marks a work folder as ours: only such a one is cleared.
MARKER = '.ropim_mm_demo'


class DemoError(Exception):
    """The demo cannot run as asked; the message says what to change."""


def cores() -> int:
    """Processor cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def clear(work_dir: Path) -> None:
    """Make the work folder; remove what an earlier demo wrote into it.

    Raises:
        DemoError: It holds something that is not the demo's.
    """
    marker = work_dir / MARKER
    if work_dir.exists() and not work_dir.is_dir():
        raise DemoError(f'--work-dir: {work_dir} is not a folder')
    if work_dir.is_dir() and any(work_dir.iterdir()):
        if not marker.is_file():
            raise DemoError(
                f'--work-dir: {work_dir} is not empty and was not made by '
                'the demo; give another folder, which will be made'
            )
        for name in marker.read_text().split():
            path = work_dir / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    work_dir.mkdir(parents=True, exist_ok=True)
    marker.write_text('')


def own(work_dir: Path, *names: str) -> None:
    """Note down names in the work folder as written by the demo."""
    with (work_dir / MARKER).open('a') as file:
        file.writelines(f'{name}\n' for name in names)


def commit() -> str | None:
    """The repository's commit, with ``+`` if files differ from it."""
    try:
        done = subprocess.run(
            ['git', 'describe', '--always', '--dirty=+', '--abbrev=12'],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def environment() -> dict[str, str]:
    """Of the processes: each computes on one core.

    More threads only get in each other's way with matrices this small.
    """
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONUNBUFFERED='1')
    env['PYTHONPATH'] = os.pathsep.join(
        [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    )
    return env
