"""How long a training step takes, of what it is made, what memory it needs.

A step is all that a training loop does between two batches, except loading
and schedules: data preprocessor, forward, backward, clipping, optimizer,
through the model's own ``train_step``, and the update of a momentum copy.
Images are random bytes that went through the config's own pipeline after
decoding, so that the model gets what its loader would give it.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from dataclasses import dataclass, field
from statistics import median

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ropim_mm.engine import launch
from ropim_mm.engine.distributed import LaunchError
from ropim_mm.engine.optimizer import DTYPES

from .benchmark_machine import MatrixRate, resident_memory, synchronize
from .synthetic import image_size, set_image_size, synthetic_batch

# A timing takes at least so long, in as many steps as needed.
MIN_SECONDS = 0.3
# Operations of a step are counted with no more images than this.
COUNTED_IMAGES = 32
# Of a momentum copy; the time does not depend on it.
MOMENTUM = 0.996


@dataclass(frozen=True)
class StepSpec:
    """A training step to measure.

    Attributes:
        config: Config file.
        options: Fields of the config to change, as ``--cfg-options``.
        batch_size: Images a step; None for that of the config.
        dtype: 'float32', 'bfloat16' or 'float16'; None for that of the
            config.
        compile: Compile the model's ``forward`` with ``torch.compile``.
        size: Side of the images in pixels; None for that of the config.
        backbone_only: Forward and backward of ``model.backbone`` alone, of a
            config of any framework, without an optimizer.
    """

    config: str
    options: dict = field(default_factory=dict)
    batch_size: int | None = None
    dtype: str | None = None
    compile: bool = False
    size: int | None = None
    backbone_only: bool = False


class TrainingStep:
    """A model, its optimizer and one batch; calling it is one step.

    Args:
        spec: What to build.
        count: Count its operations, which takes more memory than a step where
            fused attention would take less.

    Raises:
        LaunchError: The config is missing or lacks a field, or its pipeline
            needs more than an image and a label.
    """

    needed: tuple[str, ...] = ('model', 'train_dataloader', 'optim_wrapper')

    def __init__(self, spec: StepSpec, count: bool = True) -> None:
        self.spec = spec
        cfg = launch.load_config(spec.config, deepcopy(spec.options))
        for name in self.needed:
            if cfg.get(name) is None:
                raise LaunchError(
                    f'{spec.config} has no {name}: it has no training step'
                )
        if spec.size:
            set_image_size(cfg, spec.size)
        self.device = torch.device(get_device())
        self.dtype = _set_dtype(cfg, spec.dtype)
        # One forward and backward for each update, whatever the config
        # accumulates: `train_step` would divide the loss and leave out most
        # updates.
        cfg.optim_wrapper.accumulative_counts = 1
        self.batch_size = spec.batch_size or launch.global_batch_size(cfg, 1)
        before = self._allocated()
        with MODELS.switch_scope_and_registry(cfg.default_scope):
            self._build(cfg)
        self.flops = count_flops(self) if count else 0
        if spec.compile:
            self.model.forward = torch.compile(self.model.forward)
        # The optimizer makes its state in the first step.
        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(self.device)
        for _ in range(3 if spec.compile else 2):
            self()
        self.memory = None
        if self.device.type == 'cuda':
            peak = torch.cuda.max_memory_allocated(self.device)
            self.memory = peak - before
        self.repeats = max(1, round(MIN_SECONDS / self.seconds(1)[0]))

    def _build(self, cfg: Config) -> None:
        self.batch = synthetic_batch(cfg, self.batch_size)
        self.model = _build_model(cfg).to(self.device).train()
        self.optim_wrapper = build_optim_wrapper(self.model, cfg.optim_wrapper)
        # In training a hook moves the copy after each step.
        self.has_momentum_copy = hasattr(self.model, 'update_momentum_copy')
        if self.device.type == 'cuda':
            self.batch = {k: _pin(v) for k, v in self.batch.items()}

    def forward_backward(self, images: int) -> None:
        """Loss and gradients of some of the batch, without an update."""
        data = self.model.data_preprocessor(self.batch, True)
        inputs = data['inputs']
        if isinstance(inputs, (list, tuple)):
            data['inputs'] = [view[:images] for view in inputs]
        else:
            data['inputs'] = inputs[:images]
        data['data_samples'] = data['data_samples'][:images]
        with self.optim_wrapper.optim_context(self.model):
            losses = self.model(**data, mode='loss')
        loss, _ = self.model.parse_losses(losses)
        loss.backward()
        self.optim_wrapper.zero_grad()

    def _allocated(self) -> int:
        if self.device.type != 'cuda':
            return 0
        return torch.cuda.memory_allocated(self.device)

    def __call__(self) -> None:
        self.model.train_step(self.batch, self.optim_wrapper)
        if self.has_momentum_copy:
            self.model.update_momentum_copy(MOMENTUM)

    def seconds(self, steps: int | None = None) -> tuple[float, float]:
        """Time of one step, as the mean of ``steps`` steps in a row.

        Returns:
            By the clock, and of the processor: that of all threads of this
            process, which other processes do not lengthen by waiting.
        """
        steps = steps or self.repeats
        synchronize(self.device)
        start, start_cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            self()
        synchronize(self.device)
        end, end_cpu = time.perf_counter(), time.process_time()
        return (end - start) / steps, (end_cpu - start_cpu) / steps

    def __str__(self) -> str:
        inputs = self.batch['inputs']
        views = inputs if isinstance(inputs, list) else [inputs]
        shape = ' + '.join('x'.join(map(str, v.shape)) for v in views)
        params = sum(p.numel() for p in self.model.parameters())
        compiled = ', compiled' if self.spec.compile else ''
        return (
            f'{self.spec.config}: {type(self.model).__name__}, '
            f'{params / 1e6:.1f} M parameters, {shape} {views[0].dtype}'
            f'{compiled}'.replace('torch.', '')
        )


class BackboneStep(TrainingStep):
    """Forward and backward of the ``backbone`` of a config alone.

    For encoders that a training step hides behind what follows them, as in
    detection. Calling it gives the gradients of the sum of squares of the
    outputs, for random images of the size that the encoder is made for.
    """

    needed = ('model', 'optim_wrapper')

    def _build(self, cfg: Config) -> None:
        if cfg.model.get('backbone') is None:
            raise LaunchError(f'{self.spec.config} has no model.backbone')
        self.model = MODELS.build(_without_files(cfg.model.backbone))
        self.model.init_weights()
        self.model.to(self.device).train()
        channels = cfg.model.backbone.get('in_channels', 3)
        shape = (self.batch_size, channels, *image_size(cfg))
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        self.batch = dict(inputs=images.to(self.device))

    def forward_backward(self, images: int) -> None:
        """Gradients for some of the batch."""
        inputs = self.batch['inputs'][:images]
        autocast = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=autocast):
            outs = self.model(inputs)
        sum(out.float().square().sum() for out in outs).backward()
        self.model.zero_grad()

    def __call__(self) -> None:
        self.forward_backward(self.batch_size)


def make_step(spec: StepSpec, count: bool = True) -> TrainingStep:
    """The whole step, or that of the backbone alone, as ``spec`` says."""
    kind = BackboneStep if spec.backbone_only else TrainingStep
    return kind(spec, count)


def _set_dtype(cfg: Config, dtype: str | None) -> torch.dtype:
    """Make the config train in ``dtype`` on any device."""
    wrapper = cfg.optim_wrapper
    half = 'float16' if 'Amp' in str(wrapper.get('type')) else 'float32'
    wrapper.dtype = dtype or wrapper.get('dtype') or half
    wrapper.type = 'ropim_mm.AutocastOptimWrapper'
    return DTYPES[wrapper.dtype]


def _build_model(cfg: Config) -> nn.Module:
    model_cfg = _without_files(cfg.model)
    if cfg.get('data_preprocessor'):
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(model_cfg)
    model.init_weights()
    return model


def _without_files(node):
    """A model config that reads no weights: they do not change the time."""
    if isinstance(node, dict):
        return type(node)(
            {
                key: _without_files(value)
                for key, value in node.items()
                if not (
                    key == 'init_cfg'
                    and isinstance(value, dict)
                    and value.get('type') == 'Pretrained'
                )
            }
        )
    if isinstance(node, (list, tuple)):
        return type(node)(map(_without_files, node))
    return node


def _pin(item):
    # As a loader with `pin_memory` does.
    if isinstance(item, list):
        return [_pin(value) for value in item]
    return item.pin_memory() if isinstance(item, torch.Tensor) else item


def count_flops(step: TrainingStep) -> int:
    """Operations of forward and backward, a multiply-add being two.

    Matrix products and convolutions only, as the model ran them, those that
    activation checkpointing runs again too; the optimizer has none. Attention
    runs unfused here: fused kernels are counted differently from device to
    device (not at all on a CPU, with the scores that they compute a second
    time on a GPU).
    """
    images = min(step.batch_size, COUNTED_IMAGES)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as count:
        step.forward_backward(images)
    return count.get_total_flops() * step.batch_size // images


# -- comparing --------------------------------------------------------------


@dataclass
class Timing:
    """Rounds of one training step.

    Attributes:
        seconds: Time of a step, one entry a round.
        cpu_seconds: Processor time of a step, likewise.
        rates: Rate of matrix products just before, operations a second.
        flops: Operations of a step.
        images: Images of a step.
    """

    seconds: list[float]
    cpu_seconds: list[float]
    rates: list[float]
    flops: int
    images: int

    @property
    def fractions(self) -> list[float]:
        """Share of the machine's matrix rate that each round reached."""
        return [
            self.flops / seconds / rate
            for seconds, rate in zip(self.seconds, self.rates, strict=True)
        ]

    def summary(self) -> dict[str, float]:
        """Medians over the rounds, and the least disturbed values.

        ``fraction`` is the median of rounds, each against the products just
        before it; ``fraction_of_best`` is the fastest step against the
        fastest products of the run.
        """
        seconds = median(self.seconds)
        best_rate = max(self.rates)
        return dict(
            seconds=seconds,
            seconds_minimum=min(self.seconds),
            cpu_seconds=median(self.cpu_seconds),
            images_per_second=self.images / seconds,
            gflop_per_image=self.flops / self.images / 1e9,
            matrix_gflop_per_second=median(self.rates) / 1e9,
            matrix_gflop_per_second_best=best_rate / 1e9,
            fraction=median(self.fractions),
            fraction_of_best=self.flops / min(self.seconds) / best_rate,
        )


def compare(
    steps: Sequence[TrainingStep],
    rounds: int,
    progress: Callable[[int, list[Timing]], None] | None = None,
) -> list[Timing]:
    """Time steps in turn, each next to a matrix product of its own type.

    Args:
        steps: One or two (any number) of training steps.
        rounds: How often each has its turn.
        progress: Called after each round with its number and what was
            measured so far.
    """
    rates = {
        dtype: MatrixRate(dtype, steps[0].device)
        for dtype in {step.dtype for step in steps}
    }
    timings = [Timing([], [], [], s.flops, s.batch_size) for s in steps]
    for number in range(rounds):
        for step, timing in zip(steps, timings, strict=True):
            timing.rates.append(rates[step.dtype]())
            seconds, cpu_seconds = step.seconds()
            timing.seconds.append(seconds)
            timing.cpu_seconds.append(cpu_seconds)
        if progress is not None:
            progress(number, timings)
    return timings


# -- memory -----------------------------------------------------------------


def peak_memory(step: TrainingStep, threads: int | None = None) -> int:
    """Memory of the model, its optimizer and its steps at the peak, bytes.

    On a GPU what PyTorch's allocator held, measured when the step was built.
    On a CPU a process of its own runs the step: the peak of its resident set
    above what it held before it built the model.

    Args:
        step: Already built.
        threads: Of that process; None for PyTorch's choice.

    Raises:
        LaunchError: The process ended early.
    """
    if step.memory is not None:
        return step.memory
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_resident_peak, step.spec, threads).result()
        except BrokenProcessPool as error:
            raise LaunchError(
                f'{step.spec.config}: the process that measures memory was '
                'ended from outside, most likely for want of memory; try a '
                'smaller --batch-size, or --no-memory'
            ) from error


def _resident_peak(spec: StepSpec, threads: int | None) -> int:
    MMLogger.get_current_instance().setLevel('WARNING')
    if threads:
        torch.set_num_threads(threads)
    launch.load_config(spec.config, deepcopy(spec.options))  # its imports
    before, _ = resident_memory()
    make_step(spec, count=False)
    return resident_memory()[1] - before
