"""Whether a run waits for its data, in one line."""

from __future__ import annotations

import math
from time import perf_counter

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ropim_mm.errors import InputError
from ropim_mm.registry import HOOKS

# Below, no number of workers would be noticed.
THRESHOLD = 0.1


def workers_needed(workers: int, share: float) -> int:
    """How many loader workers would deliver a batch within a step's work.

    As long as each has a core to itself, and the disk keeps up.

    Args:
        workers: Processes that load; 0 for the training process itself.
        share: Share of a step's time that waits for data, in [0, 1].
    """
    work = max(1 - share, 1e-3)  # 1000 times the workers are none
    # In the training process loading and working take turns.
    return math.ceil((workers / work if workers else share / work) - 1e-9)


def advice(workers: int, share: float) -> str:
    """What to do about waiting, one sentence; arguments as above."""
    return (
        f'{workers} loader worker(s) a process; about '
        f'{workers_needed(workers, share)} would keep up, a core each: '
        'train_dataloader.num_workers. Without the cores, make the images '
        'smaller once (tools/dataset_converters/shrink_images.py); with label '
        'maps on a slow disk, set cache_bytes of ropim_mm.LoadRegions'
    )


@HOOKS.register_module()
class DataWaitHook(Hook):
    """Says in the log when training begins to wait for its data.

    The time from the end of a step to the next batch is waiting, the rest is
    work. After each ``interval`` steps the share of waiting is compared with
    ``threshold``: one warning when it gets there, with what to do, and one
    line when it is below half of it again. Nothing is logged as long as data
    keep up. Checkpoints between steps are work; evaluation, what happens
    between epochs and the start of the run are neither.

    Two readings of a clock a step, on the host; the device is not waited
    for. A host that runs ahead of its device waits for data in time that the
    device still works, so that on a GPU the share is an upper bound of what
    there is to gain. In a run of many processes rank 0 speaks for all.

    Args:
        interval: Steps.
        threshold: Share of time, in (0, 1).

    Raises:
        InputError: One of them is out of range.
    """

    # After the steps of all other hooks, which are no waiting for data.
    priority = 'LOWEST'

    def __init__(
        self, interval: int = 100, threshold: float = THRESHOLD
    ) -> None:
        if interval < 1:
            raise InputError(
                f'DataWaitHook: interval is {interval}; expected a number of '
                'steps, 1 or more (100 is usual)'
            )
        if not 0 < threshold < 1:
            raise InputError(
                f'DataWaitHook: threshold is {threshold}; expected a share of '
                f'time in (0, 1), {THRESHOLD} being usual'
            )
        self.interval = interval
        self.threshold = threshold
        self.waiting = False
        self._begin()
        self._since: float | None = None

    def before_train_epoch(self, runner: Runner) -> None:
        """An epoch's first batch is waited for from here."""
        self._resume()

    def after_val(self, runner: Runner) -> None:
        """Evaluation in the middle of an epoch is no waiting."""
        self._resume()

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """A batch has come."""
        if self._since is not None:
            self._waited += perf_counter() - self._since

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        """A step has ended."""
        now = perf_counter()
        if self._since is not None:
            self._steps += 1
            self._total += now - self._since
        if self._steps == self.interval:
            self._judge(runner)
            self._begin()
        self._since = perf_counter()

    def _begin(self) -> None:
        self._steps = 0
        self._waited = self._total = 0.0

    def _resume(self) -> None:
        if self._since is not None:
            self._since = perf_counter()

    def _judge(self, runner: Runner) -> None:
        if not is_main_process():
            return
        share = self._waited / self._total
        steps = f'of the time of the last {self._steps} steps'
        if share >= self.threshold and not self.waiting:
            self.waiting = True
            runner.logger.warning(
                f'Training waits for data {share:.0%} {steps} '
                f'({self._waited / self._steps:.3f} of '
                f'{self._total / self._steps:.3f} s a step). '
                f'{advice(runner.train_dataloader.num_workers, share)}.'
            )
        elif share < self.threshold / 2 and self.waiting:
            self.waiting = False
            runner.logger.info(
                f'Training no longer waits for data: {share:.0%} {steps}.'
            )
