"""A few processes at a time, with their progress and the time left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_TAIL = 25  # lines of a log to show after a failure
_POLL = 0.25  # seconds
_PRIOR = 20.0  # seconds of work as planned that the pace starts from
_HEARTBEAT = 20.0  # seconds between lines where there is no terminal


class JobError(Exception):
    """A process failed; the message holds the end of its log."""


@dataclass
class Job:
    """Commands to run one after another.

    Attributes:
        name: What the screen says.
        commands: Arguments of each process.
        log: File for all they print.
        seconds: How long it takes, roughly, all commands together.
        after: Names of jobs that must be done before.
        run: Work folder of the training in it, if any: its progress.
        epochs: Of that training, or updates if it does not count epochs.
    """

    name: str
    commands: Sequence[Sequence[str]]
    log: Path
    seconds: float
    after: Sequence[str] = ()
    run: Path | None = None
    epochs: int = 0
    took: float = field(default=0.0, init=False)

    def epoch(self) -> int:
        """Epochs (or updates) of the training so far, as it logged."""
        if self.run is None:
            return 0
        # One file from each start of it.
        found = [0]
        for file in self.run.glob('*/vis_data/scalars.json'):
            found += [
                int(entry['epoch'] if 'epoch' in entry else entry['step'])
                for entry in read_scalars(file)
                if 'loss' in entry
            ]
        return max(found)


def read_scalars(file: Path) -> list[dict]:
    """The entries of a ``scalars.json``; a half-written line is left out."""
    entries = []
    for line in file.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


class Screen:
    """Progress: lines that stay, and on a terminal one that changes."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self._live = sys.stdout.isatty()
        self._shown = ''
        self._last = self.start

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def line(self, text: str, left: float | None = None) -> None:
        """Print a line with the time that has passed and that is left."""
        self._clear()
        print(f'[{self._clock(left)}] {text}', flush=True)
        self._last = time.monotonic()

    def progress(self, text: str, left: float) -> None:
        """What is going on now."""
        if self._live:
            self._clear()
            width = os.get_terminal_size().columns - 1
            self._shown = f'[{self._clock(left)}] {text}'[:width]
            print(self._shown, end='\r', flush=True)
        elif time.monotonic() - self._last > _HEARTBEAT:
            self.line(text, left)

    def _clear(self) -> None:
        if self._shown:
            print(' ' * len(self._shown), end='\r')
            self._shown = ''

    def _clock(self, left: float | None) -> str:
        clock = _minutes(self.elapsed)
        return clock if left is None else f'{clock}, {_minutes(left)} left'


def _minutes(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes}:{seconds:02}'


class Pool:
    """Runs jobs, as many at a time as there are workers.

    Args:
        jobs: In order of preference.
        workers: Processes at a time.
        cwd: Current folder of all processes.
        env: Their environment.
        screen: Where to say what happens.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        workers: int,
        cwd: Path,
        env: dict[str, str],
        screen: Screen,
    ) -> None:
        self.jobs = jobs
        self.workers = workers
        self.cwd = cwd
        self.env = env
        self.screen = screen
        self._done: set[str] = set()
        self._running: dict[str, _Running] = {}

    def run(self, report: Callable[[Job], str]) -> None:
        """Run them all.

        Args:
            report: Called with each finished job; returns what to print
                after its name.

        Raises:
            JobError: One failed. The others were stopped.
        """
        try:
            while len(self._done) < len(self.jobs):
                self._begin()
                time.sleep(_POLL)
                for job in self.jobs:
                    running = self._running.get(job.name)
                    if running is None or not running.advance():
                        continue
                    del self._running[job.name]
                    self._done.add(job.name)
                    job.took = running.elapsed
                    self.screen.line(
                        f'{job.name}: done in {job.took:.0f} s{report(job)}',
                        self.left(),
                    )
                self.screen.progress(self._doing(), self.left())
        finally:
            for running in self._running.values():
                running.stop()

    def left(self) -> float:
        """Seconds left: as planned, at the pace so far."""
        planned = used = 0.0
        remaining = {}
        for job in self.jobs:
            share, seconds = float(job.name in self._done), job.took
            if job.name in self._running:
                running = self._running[job.name]
                share, seconds = running.share(), running.elapsed
            planned += share * job.seconds
            used += seconds
            remaining[job.name] = (1 - share) * job.seconds
        chains = [
            remaining[job.name] + sum(remaining[name] for name in job.after)
            for job in self.jobs
        ]
        total = sum(remaining.values())
        # At first the plan says more than the little that is done.
        pace = (used + _PRIOR) / (planned + _PRIOR)
        return pace * max(total / self.workers, *chains)

    def _begin(self) -> None:
        for job in self.jobs:
            if len(self._running) >= self.workers:
                return
            if job.name in self._done or job.name in self._running:
                continue
            if self._done.issuperset(job.after):
                self._running[job.name] = _Running(job, self.cwd, self.env)

    def _doing(self) -> str:
        words = []
        for job in self.jobs:
            if job.name in self._running:
                running = self._running[job.name]
                words.append(f'{job.name} {running.where()}'.strip())
        return ', '.join(words)


class _Running:
    def __init__(self, job: Job, cwd: Path, env: dict[str, str]) -> None:
        self.job, self.cwd, self.env = job, cwd, env
        self.start = time.monotonic()
        self._next = 0
        self._log = job.log.open('w')
        self._process: subprocess.Popen | None = None
        self.advance()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.start

    def share(self) -> float:
        """How much of the job is done, 0 to 1."""
        by_time = min(0.95, self.elapsed / self.job.seconds)
        if not self.job.epochs:
            return by_time
        # The last part is for evaluation, the first for starting.
        trained = self.job.epoch() / self.job.epochs
        return max(0.9 * trained, min(0.1, by_time))

    def where(self) -> str:
        if not self.job.epochs:
            return ''
        epoch = self.job.epoch()
        if epoch == self.job.epochs and self._next > 1:
            return 'testing'
        return f'{epoch}/{self.job.epochs}'

    def advance(self) -> bool:
        """Start what is to be started; True once all is done."""
        if self._process is not None:
            status = self._process.poll()
            if status is None:
                return False
            if status:
                self._fail(status)
        if self._next == len(self.job.commands):
            self._log.close()
            return True
        command = list(map(str, self.job.commands[self._next]))
        self._next += 1
        print(f'$ {subprocess.list2cmdline(command)}', file=self._log)
        self._log.flush()
        self._process = subprocess.Popen(
            command,
            cwd=self.cwd,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        return False

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()

    def _fail(self, status: int) -> None:
        self._log.close()
        lines = self.job.log.read_text(errors='replace').splitlines()
        tail = '\n'.join(f'  | {line}' for line in lines[-_TAIL:])
        raise JobError(
            f'{self.job.name} failed with status {status}. The end of '
            f'{self.job.log}:\n{tail}'
        )
