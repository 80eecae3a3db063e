"""What a training step is made of: named parts and their share of the time.

A part is a few functions of a running model. Which ones are of interest is
the method's to say: :func:`parts_of` is told for each algorithm below, and the
clock knows no method.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import singledispatch, wraps
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from ropim_mm.models import RMAE, ROPIM, ConMIM, LoMaR

from .benchmark_machine import synchronize

if TYPE_CHECKING:
    from .benchmark_step import TrainingStep


class Call(NamedTuple):
    """A function of an object: a module's ``forward``, a method's step."""

    owner: Any
    name: str


Parts = Mapping[str, Sequence[Call]]


@singledispatch
def parts_of(model: nn.Module) -> Parts:
    """The parts of a model's training step worth a line of their own.

    A method adds its own with ``@parts_of.register``; subclasses inherit it.

    Args:
        model: An algorithm.

    Returns:
        Titles to the functions that make up the part. Empty by default.
    """
    return {}


@parts_of.register
def _(model: ROPIM) -> Parts:
    # Drawing sketches and all that the projections are applied to.
    return {
        'projection and loss': [
            Call(model, 'projections'),
            Call(model.head, 'loss'),
        ]
    }


@parts_of.register
def _(model: LoMaR) -> Parts:
    return {
        'windows': [
            Call(model, 'windows'),
            Call(model, 'positions'),
            Call(model, 'patches'),
        ],
        'prediction and loss': [
            Call(model.neck, 'forward'),
            Call(model.head, 'loss'),
        ],
    }


@parts_of.register
def _(model: RMAE) -> Parts:
    parts = {}
    if model.with_neck:
        parts['pixel decoder and loss'] = [
            Call(model.neck, 'forward'),
            Call(model.head, 'loss'),
        ]
    if model.num_regions:
        parts['regions'] = [
            Call(model, 'regions'),
            Call(model.region_branch, 'forward'),
            Call(model.region_branch, 'loss'),
        ]
    return parts


@parts_of.register
def _(model: ConMIM) -> Parts:
    copy = model.momentum
    return {
        'forward of the momentum copy': [
            Call(copy.backbone, 'forward'),
            Call(copy.neck, 'forward'),
        ],
        'update of the momentum copy': [Call(model, 'update_momentum_copy')],
        'loss': [Call(model.head, 'loss')],
    }


class PartsClock:
    """Times parts inside running steps, forward and backward.

    Forward is the time that the part's functions take, and the functions that
    they return (as ROPIM's projections) when these are called. Backward is
    the time of all nodes of the autograd graph that the part made; on a GPU
    as on a CPU they run one after the other.

    Args:
        step: A step that is not compiled.
    """

    def __init__(self, step: TrainingStep) -> None:
        self.step = step
        self.parts = {} if step.spec.compile else parts_of(step.model)
        self._spans: dict[str, list[tuple]] = {}
        self._open: set[str] = set()

    def shares(self, steps: int) -> dict[str, list[float]]:
        """Share of the step that each part takes, in [0, 1].

        Args:
            steps: How many steps to run; one share each.

        Returns:
            Titles to shares.
        """
        shares = defaultdict(list)
        if self.parts:
            with self._timing():
                for _ in range(steps):
                    for title, share in self._run().items():
                        shares[title].append(share)
        return dict(shares)

    @contextmanager
    def _timing(self) -> Iterator[None]:
        replaced = []
        try:
            for title, calls in self.parts.items():
                for owner, name in calls:
                    function = getattr(owner, name)
                    replaced.append((owner, name, vars(owner).get(name)))
                    setattr(owner, name, self._timed(title, function))
            yield
        finally:
            for owner, name, own in reversed(replaced):
                delattr(owner, name)
                if own is not None:
                    setattr(owner, name, own)

    def _run(self) -> dict[str, float]:
        self._spans = {title: [] for title in self.parts}
        synchronize(self.step.device)
        start = self._stamp()
        self.step()
        end = self._stamp()
        synchronize(self.step.device)
        whole = self._between(start, end)
        return {
            title: sum(self._between(*span) for span in spans) / whole
            for title, spans in self._spans.items()
        }

    def _stamp(self):
        if self.step.device.type != 'cuda':
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start, end) -> float:
        if self.step.device.type != 'cuda':
            return end - start
        return start.elapsed_time(end) / 1000

    def _timed(self, title: str, function: Callable) -> Callable:
        @wraps(function)
        def timed(*args, **kwargs):
            if title in self._open:  # called by another function of the part
                return function(*args, **kwargs)
            self._open.add(title)
            first = _next_node()
            start = self._stamp()
            try:
                out = function(*args, **kwargs)
            finally:
                self._open.discard(title)
            self._spans[title].append((start, self._stamp()))
            return self._follow(title, out, range(first, _next_node()))

        return timed

    def _follow(self, title: str, out, made: range):
        """Watch the graph behind a result; time functions in it as well.

        Args:
            title: Of the part.
            out: What one of its functions returned.
            made: Numbers of the nodes that were made meanwhile.
        """
        if isinstance(out, torch.Tensor):
            if out.grad_fn is not None:
                self._watch(title, out.grad_fn, made)
            return out
        if isinstance(out, dict):
            return {k: self._follow(title, v, made) for k, v in out.items()}
        if type(out) in (list, tuple):
            return type(out)(self._follow(title, v, made) for v in out)
        if callable(out) and not isinstance(out, nn.Module):
            return self._timed(title, out)
        return out

    def _watch(self, title: str, node, made: range) -> None:
        mark = f'{__name__}: {title}'
        waiting = [node]
        while waiting:
            node = waiting.pop()
            if node._sequence_nr() not in made or mark in node.metadata:
                continue
            node.metadata[mark] = True
            waiting += [n for n, _ in node.next_functions if n is not None]
            self._time_node(node, self._spans[title])

    def _time_node(self, node, spans: list[tuple]) -> None:
        started = []
        node.register_prehook(lambda grads: started.append(self._stamp()))
        node.register_hook(
            lambda inputs, outputs: spans.append(
                (started.pop(), self._stamp())
            )
        )


def _next_node() -> int:
    """A number between those of the autograd nodes made before and after."""
    with torch.enable_grad():
        leaf = torch.zeros((), requires_grad=True)
        return leaf.view_as(leaf).grad_fn._sequence_nr()


def profile_table(step: TrainingStep, rows: int = 25) -> str:
    """The operators of one step that take most time, as a table."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = step.device.type == 'cuda'
    activities = [ProfilerActivity.CPU]
    if on_gpu:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        step()
        synchronize(step.device)
    return profiler.key_averages().table(
        sort_by=f'self_{"cuda" if on_gpu else "cpu"}_time_total',
        row_limit=rows,
        max_name_column_width=45,
    )
