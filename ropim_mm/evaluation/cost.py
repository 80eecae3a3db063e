"""What a published schedule costs on N GPUs: arithmetic, not a measurement.

Operations and parameters are counted on the model itself; the rest follows
from rates that the user states. The formulas, for N GPUs, P trained parameters
and b images a GPU:

* computing: ``t_c = b * operations an image / rate``, with the rate that a
  GPU reaches in training (its peak times the share that a step reaches);
* data-parallel (DDP): gradients are summed in a ring, of which every GPU
  sends ``2 (N - 1) / N * 4 P`` bytes a step (float32). This goes on during the
  backward pass, two thirds of the computing; what takes longer is waited for;
* split over all GPUs (FSDP, as ``engine/sharding.py`` does it, in float32):
  every GPU sends ``(N - 1) / N * 3 * 4 P`` bytes: parameters gathered for the
  forward pass and again for the backward pass, gradients summed once, all of
  it during computing;
* scaling: ``t_c / step``; cost: ``N * steps * step``.

Left out: the loader, checkpoints, stragglers, the optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mmengine.config import Config

from ropim_mm.engine.distributed import LaunchError

from .benchmark_step import StepSpec, TrainingStep

# Of ImageNet-1k's training set.
IMAGENET = 1_281_167
_BACKWARD = 2 / 3  # of the computing


@dataclass(frozen=True)
class Rates:
    """What one GPU does and how it talks to others.

    Attributes:
        tflops: Reached in training, 10^12 operations a second.
        node_gbs: Sent by one GPU to others of its machine, 10^9 bytes a
            second.
        network_gbs: Sent by one machine to others, all its cards together:
            rings share them, and each goes through a machine once.
        gpus_per_node: GPUs of a machine.
    """

    tflops: float
    node_gbs: float
    network_gbs: float
    gpus_per_node: int = 8

    def bandwidth(self, gpus: int) -> float:
        """Bytes a second of rings over so many GPUs: their slowest link."""
        if gpus <= self.gpus_per_node:
            return 1e9 * self.node_gbs
        return 1e9 * min(self.node_gbs, self.network_gbs)


@dataclass(frozen=True)
class Schedule:
    """A training as a config says.

    Attributes:
        batch: Images a step, over all GPUs.
        steps: Updates in all.
        flops: Operations an image, forward and backward.
        parameters: That are trained.
    """

    batch: int
    steps: int
    flops: float
    parameters: int


@dataclass(frozen=True)
class Cost:
    """A schedule on a number of GPUs.

    Attributes:
        gpus: Their number.
        images: Images a GPU and step.
        compute: Seconds of computing a step.
        sent: Bytes that each GPU sends a step.
        sending: Seconds that this takes.
        step: Seconds a step.
        scaling: Computing over step: 1 is perfect.
        hours: Of the whole training.
        gpu_hours: Hours times GPUs.
    """

    gpus: int
    images: float
    compute: float
    sent: float
    sending: float
    step: float
    scaling: float
    hours: float
    gpu_hours: float


def schedule_of(
    cfg: Config, config: str, options: dict, images: int = IMAGENET
) -> Schedule:
    """Read batch and length from a config, count operations and parameters.

    Args:
        cfg: The config; its ``auto_scale_lr.base_batch_size`` is the
            published batch.
        config: Its file, built once to be counted.
        options: Fields to change, as ``--cfg-options``.
        images: Of the dataset, where the length is in epochs.

    Raises:
        LaunchError: The config states no batch or no length, or is none of
            pretraining or classification.
    """
    if cfg.get('default_scope', 'mmpretrain') != 'mmpretrain':
        raise LaunchError(
            f'{config} is a config of {cfg.default_scope}; expected one of '
            'pretraining or classification, whose images are all of one size'
        )
    batch = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    train = cfg.get('train_cfg') or {}
    if not batch or not (train.get('max_epochs') or train.get('max_iters')):
        raise LaunchError(
            f'{config} has no auto_scale_lr.base_batch_size, or neither '
            'train_cfg.max_epochs nor max_iters: expected the published '
            'batch and length'
        )
    steps = train.get('max_iters') or train.max_epochs * (images // batch)
    # Two: some losses compare images.
    step = TrainingStep(StepSpec(config, options, batch_size=2))
    trained = sum(
        p.numel() for p in step.model.parameters() if p.requires_grad
    )
    return Schedule(batch, steps, step.flops / 2, trained)


def estimate(
    schedule: Schedule, gpus: int, rates: Rates, sharded: bool = False
) -> Cost:
    """Apply the formulas above.

    Args:
        schedule: What to train.
        gpus: On how many.
        rates: What they do.
        sharded: FSDP instead of DDP.
    """
    images = schedule.batch / gpus
    compute = images * schedule.flops / (1e12 * rates.tflops)
    a_parameter = 4 * (3 if sharded else 2)  # float32
    sent = (gpus - 1) / gpus * a_parameter * schedule.parameters
    sending = sent / rates.bandwidth(gpus)
    hidden = compute if sharded else _BACKWARD * compute
    step = compute + max(0.0, sending - hidden)
    hours = schedule.steps * step / 3600
    return Cost(
        gpus,
        images,
        compute,
        sent,
        sending,
        step,
        compute / step,
        hours,
        gpus * hours,
    )


def table(schedule: Schedule, costs: Sequence[Cost]) -> str:
    """Schedule and costs as Markdown."""
    lines = [
        f'{schedule.steps:,} steps of {schedule.batch} images, '
        f'{schedule.flops / 1e9:.1f} GFLOP an image, '
        f'{schedule.parameters / 1e6:.1f} M parameters: '
        f'{schedule.flops * schedule.batch * schedule.steps:.3g} operations',
        '',
        '| GPUs | images a GPU | computing (ms) | sent a GPU (MB) | '
        'sending (ms) | step (ms) | scaling | hours | GPU-hours |',
        '| ---: ' * 9 + '|',
    ]
    for c in costs:
        images = f'{c.images:.0f}' if c.images >= 1 else f'{c.images:.2f}'
        if not math.isclose(c.images, round(c.images)):
            images = f'{c.images:.2f}'
        lines.append(
            f'| {c.gpus} | {images} | {1e3 * c.compute:.1f} | '
            f'{c.sent / 1e6:.0f} | {1e3 * c.sending:.2f} | '
            f'{1e3 * c.step:.1f} | {c.scaling:.3f} | {c.hours:.1f} | '
            f'{c.gpu_hours:.0f} |'
        )
    return '\n'.join(lines)
