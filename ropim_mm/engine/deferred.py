"""Scalars that stay on the device until somebody reads them.

MMEngine turns every loss and gradient norm into a Python number in the step
that made it, so the host waits for the device once or twice a step. Here the
tensors are kept, and all of them are fetched together when a log line, a
checkpoint or a hook asks for the history.
"""

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.hooks import RuntimeInfoHook
from mmengine.logging import HistoryBuffer, MessageHub

from ropim_mm.registry import HOOKS

# Bounds the tensors that wait when nothing reads the history for long.
MAX_PENDING = 1000


class DeferredBuffer(HistoryBuffer):
    """A history that also takes tensors and fetches them when it is read.

    It is pickled and copied as a plain ``HistoryBuffer``, so a checkpoint
    does not depend on this class.
    """

    def __init__(
        self,
        log_history: Sequence = (),
        count_history: Sequence = (),
        max_length: int = 1000000,
    ) -> None:
        self._pending: list[torch.Tensor] = []
        super().__init__(log_history, count_history, max_length)

    def defer(self, value: torch.Tensor) -> None:
        """Append one number.

        Args:
            value (Tensor): One element, any shape, dtype and device. It must
                not be changed in place afterwards.
        """
        self._pending.append(value.detach().reshape(()))
        if len(self._pending) >= MAX_PENDING:
            self._fetch()

    def _fetch(self) -> None:
        if not self._pending:
            return
        values = torch.stack([v.float() for v in self._pending]).tolist()
        self._pending.clear()
        ones = np.ones(len(values), dtype=np.int64)
        self._values = np.append(self._values, values)[-self.max_length :]
        self._counts = np.append(self._counts, ones)[-self.max_length :]

    # The base class reads and writes these two names everywhere.
    @property
    def _log_history(self) -> np.ndarray:
        self._fetch()
        return self._values

    @_log_history.setter
    def _log_history(self, values: np.ndarray) -> None:
        self._values = values

    @property
    def _count_history(self) -> np.ndarray:
        self._fetch()
        return self._counts

    @_count_history.setter
    def _count_history(self, counts: np.ndarray) -> None:
        self._counts = counts

    def __reduce_ex__(self, protocol: int) -> tuple:
        plain = HistoryBuffer(max_length=self.max_length)
        plain._log_history, plain._count_history = self.data
        return HistoryBuffer, (), plain.__getstate__()


def defer_scalar(hub: MessageHub, key: str, value: torch.Tensor) -> None:
    """Append a one-element tensor to the history ``key`` without a sync.

    Only the first value of a run, or after a resume, is fetched at once.

    Args:
        hub (MessageHub): The hub that the log processor reads.
        key (str): Name of the history, for example ``'train/loss'``.
        value (Tensor): One element on any device.
    """
    buffer = hub.log_scalars.get(key)
    if isinstance(buffer, DeferredBuffer):
        buffer.defer(value)
        return
    hub.update_scalar(key, value.item())
    plain = hub.log_scalars[key]
    hub.log_scalars[key] = DeferredBuffer(*plain.data, plain.max_length)


@HOOKS.register_module()
class DeferredRuntimeInfoHook(RuntimeInfoHook):
    """MMEngine's ``RuntimeInfoHook`` without a host sync in every step."""

    def after_train_iter(
        self,
        runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Append the step's log variables to their histories."""
        for key, value in (outputs or {}).items():
            if isinstance(value, torch.Tensor):
                defer_scalar(runner.message_hub, f'train/{key}', value)
            else:
                runner.message_hub.update_scalar(f'train/{key}', value)
