"""What a step cannot be faster than: its matrix products, run alone.

A step's share of the machine's rate of large square products says how much
is lost, not what could be won: products of narrow layers and short sequences
are slower themselves. Here those of a step are run again with their own
shapes, strides and types, one kind after another, with nothing between them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Hashable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from .benchmark_machine import synchronize
from .benchmark_step import TrainingStep

# Names of operators in ``torch.ops.aten``, all overloads of which count.
_PRODUCTS = {
    'mm',
    'addmm',
    'bmm',
    'baddbmm',
    'convolution',
    'convolution_backward',
}
# Fused attention is products, with a softmax that is not run without them.
_FUSED = '_scaled_dot_product_'


class _Operand:
    """What there is to know of a tensor to make one like it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.key = (
            tuple(tensor.shape),
            tensor.stride(),
            tensor.dtype,
            tensor.device,
        )

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Operand) and self.key == other.key

    def make(self) -> torch.Tensor:
        shape, stride, dtype, device = self.key
        if not dtype.is_floating_point:  # states of random generators
            return torch.zeros(shape, dtype=dtype, device=device)
        # Strides may be 0, or larger than the shape says.
        steps = zip(shape, stride, strict=True)
        length = 1 + sum((size - 1) * step for size, step in steps)
        values = torch.randn(max(1, length), device=device).to(dtype)
        return values.as_strided(shape, stride)


class _Recorder(TorchDispatchMode):
    """Counts the products that run, by operator and operands."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[Hashable, ...]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in _PRODUCTS or name.startswith(_FUSED):
            values, spec = tree_flatten((args, kwargs))
            described = tuple(
                _Operand(v) if isinstance(v, torch.Tensor) else v
                for v in values
            )
            self.calls[func, described, spec] += 1
        return func(*args, **kwargs)


class ProductsAlone:
    """The matrix products of a training step, without the step.

    Args:
        step: Is run once, to see what it multiplies.

    Attributes:
        count: Number of products a step.
    """

    def __init__(self, step: TrainingStep) -> None:
        self.device = step.device
        with _Recorder() as recorder:
            step()
        self._calls = recorder.calls
        self.count = sum(recorder.calls.values())

    def seconds(self) -> float:
        """Time of all of them, each kind as often as in a step.

        What a kind reads is made before its time is taken, once for all its
        calls, and may still be in the cache: this is a lower bound.
        """
        total = 0.0
        for (func, described, spec), count in self._calls.items():
            values = [
                v.make() if isinstance(v, _Operand) else v for v in described
            ]
            args, kwargs = tree_unflatten(values, spec)
            func(*args, **kwargs)  # chooses kernels, touches memory
            synchronize(self.device)
            start = time.perf_counter()
            for _ in range(count):
                func(*args, **kwargs)
            synchronize(self.device)
            total += time.perf_counter() - start
        return total
