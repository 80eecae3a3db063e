"""What a machine is and can do: its name, clock, memory, matrix products."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from pathlib import Path

import torch

# Large enough for the processor's best rate, small enough for a laptop.
_SIZE = {'cpu': 2048, 'cuda': 8192}
_SECONDS = 0.1


def device_name(device: torch.device | None = None) -> str:
    """What the machine calls its accelerator, or its processor if None."""
    if device is not None and device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything it was given."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


class MatrixRate:
    """The rate of the machine's own products of large square matrices.

    Args:
        dtype: Type of the factors and of the product.
        device: Where to multiply.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.device = device
        self.size = _SIZE.get(device.type, _SIZE['cpu'])
        shape = (self.size, self.size)
        self._factors = [
            torch.randn(shape, device=device).to(dtype) for _ in range(2)
        ]
        self._product = torch.empty(shape, device=device, dtype=dtype)
        self._count = 1
        self._seconds(1)  # starts threads, chooses kernels
        self._count = max(1, round(_SECONDS / self._seconds(1)))

    def _seconds(self, count: int) -> float:
        synchronize(self.device)
        start = time.perf_counter()
        for _ in range(count):
            torch.matmul(*self._factors, out=self._product)
        synchronize(self.device)
        return time.perf_counter() - start

    def __call__(self) -> float:
        """Operations a second, the best of three short measurements."""
        best = min(self._seconds(self._count) for _ in range(3))
        return 2 * self.size**3 * self._count / best


def resident_memory() -> tuple[int, int]:
    """Memory of this process: (now, highest so far), bytes.

    Where there is no ``/proc`` both are the highest so far.
    """
    try:
        lines = Path('/proc/self/status').read_text().splitlines()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak *= 1 if sys.platform == 'darwin' else 1024
        return peak, peak
    # Not `ru_maxrss`: a process inherits that from the one that started it.
    kib = {
        key: int(value.split()[0])
        for key, _, value in (line.partition(':') for line in lines)
        if key in ('VmRSS', 'VmHWM')
    }
    return kib['VmRSS'] * 1024, kib['VmHWM'] * 1024


def usable_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
