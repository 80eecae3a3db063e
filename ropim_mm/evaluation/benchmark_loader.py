"""How many images a second a config's training loader delivers.

Reading, decoding, the pipeline's steps and collating, in worker processes as
in training; the model's own work (normalising, the copy to a GPU) is not in
it. The order of images is random and endless, so that an epoch's end does not
enter a measurement.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import transforms as T
from torchvision.transforms import functional as F

from ropim_mm.engine import launch
from ropim_mm.engine.distributed import LaunchError, adapt_dataloader
from ropim_mm.engine.waiting import THRESHOLD, advice

TORCHVISION = 'torchvision'
# Batches that each worker delivers before time is taken: the first ones are
# made while workers start, the next ones lie ready.
WARM_UP = 2


@dataclass(frozen=True)
class LoaderSpec:
    """A loader to measure.

    Attributes:
        config: Config file.
        options: Fields of the config to change, as ``--cfg-options``.
        workers: Worker processes; 0 loads in this process.
        batch_size: Images a batch; None for that of the config.
        reference: Deliver the same images through torchvision instead, see
            :class:`TorchvisionImages`.
    """

    config: str
    options: dict = field(default_factory=dict)
    workers: int = 1
    batch_size: int | None = None
    reference: bool = False


def build_loader(spec: LoaderSpec) -> DataLoader:
    """The training loader of a config, with endless random order.

    Args:
        spec: What to build.

    Raises:
        LaunchError: The config, the data or a field is missing; or the
            reference cannot be made for this config.
    """
    cfg = launch.load_config(spec.config, deepcopy(spec.options))
    if cfg.get('train_dataloader') is None:
        raise LaunchError(f'{spec.config} has no train_dataloader')
    launch.check_data(cfg, 'train_dataloader')
    loader = dict(cfg.train_dataloader)
    if spec.batch_size:
        loader['batch_size'] = spec.batch_size
    if cfg.default_scope == 'mmpretrain':
        loader.setdefault('collate_fn', dict(type='default_collate'))
    loader.update(
        num_workers=spec.workers,
        # Workers end with their turn, or they would work in that of others.
        persistent_workers=False,
    )
    multi = cfg.get('env_cfg', {}).get('mp_cfg', {})
    cv2.setNumThreads(multi.get('opencv_num_threads', 0))
    if spec.workers:
        loader['multiprocessing_context'] = multi.get(
            'mp_start_method', 'fork'
        )
    loader = adapt_dataloader(loader)
    with DATASETS.switch_scope_and_registry(cfg.default_scope):
        dataset = DATASETS.build(loader['dataset'])
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
        if spec.reference:
            dataset = TorchvisionImages(dataset, cfg)
            loader.pop('batch_sampler', None)
            loader['collate_fn'] = torch.stack
        loader.update(dataset=dataset, sampler=EndlessSampler(dataset))
        return Runner.build_dataloader(loader)


class EndlessSampler(Sampler):
    """Indices of a dataset in random order, again and again.

    Unlike MMEngine's ``InfiniteSampler`` it can be started more than once.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(len(self)).tolist()


def training_pipeline(cfg: Config) -> list[dict]:
    """The steps that a training image goes through, as configured.

    Args:
        cfg: With ``train_dataloader``; its dataset may wrap the one that has
            the pipeline.

    Raises:
        LaunchError: There is none.
    """
    dataset = cfg.train_dataloader.get('dataset') or {}
    while 'pipeline' not in dataset:
        parts = dataset.get('datasets') or [dataset.get('dataset')]
        if not parts[0]:
            raise LaunchError(
                f'{cfg.filename}: train_dataloader.dataset has no pipeline, '
                'and neither has a dataset that it wraps'
            )
        dataset = parts[0]
    return dataset['pipeline']


class TorchvisionImages(Dataset):
    """The images of a dataset through torchvision's transforms.

    Decode with Pillow, ``RandomResizedCrop`` with the config's numbers, flip,
    float tensor, normalise: the pipeline that the released code of ROPIM
    used. It normalises in the worker, which our configs leave to the model.

    Args:
        dataset: Of the config; its own pipeline is not run.
        cfg: Config with ``RandomResizedCrop`` in the training pipeline and
            ``mean`` and ``std`` in ``data_preprocessor``.

    Raises:
        LaunchError: The dataset gives no encoded images, or the config lacks
            one of these.
    """

    def __init__(self, dataset: Dataset, cfg: Config) -> None:
        self.dataset = dataset
        pipeline = training_pipeline(cfg)
        crops = [
            s for s in pipeline if s['type'].endswith('RandomResizedCrop')
        ]
        norm = cfg.get('data_preprocessor') or cfg.model.get(
            'data_preprocessor', {}
        )
        for found, missing in (
            (crops, 'a RandomResizedCrop in the training pipeline'),
            ('mean' in norm and 'std' in norm, 'data_preprocessor.mean, .std'),
            ('img_path' in dataset.get_data_info(0), 'encoded image files'),
        ):
            if not found:
                raise LaunchError(
                    f'{cfg.filename}: the comparison with torchvision needs '
                    f'{missing}, and there is none'
                )
        crop = crops[0]
        # What becomes of the same crop here and there.
        self.steps = Compose(pipeline[: pipeline.index(crop) + 1])
        self.filter = (
            f'{crop.get("interpolation", "bilinear")}, by '
            f'{crop.get("backend", "cv2")} and by Pillow'
        )
        self.reverse = norm.get('to_rgb', False)
        self.transform = T.Compose(
            [
                T.RandomResizedCrop(
                    crop['scale'],
                    crop.get('crop_ratio_range', (0.08, 1.0)),
                    crop.get('aspect_ratio_range', (3 / 4, 4 / 3)),
                    T.InterpolationMode(crop.get('interpolation', 'bilinear')),
                ),
                T.RandomHorizontalFlip(),
                T.ToTensor(),
                T.Normalize(
                    [value / 255 for value in norm['mean']],
                    [value / 255 for value in norm['std']],
                ),
            ]
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Image ``index``, float32 (3, size, size)."""
        with self._open(index) as image:
            return self.transform(image.convert('RGB'))

    def _open(self, index: int) -> Image.Image:
        info = self.dataset.get_data_info(index)
        source = info.get('img_source')
        return Image.open(io.BytesIO(source()) if source else info['img_path'])

    def difference(self, images: int = 100) -> OutputDifference:
        """Compare with what the config's own pipeline makes of equal crops.

        Decoded, cropped and resized, before flips and colours, as levels from
        0 to 255. Images are turned upright in both.

        Args:
            images: How many of the dataset, from its beginning.
        """
        *before, crop = self.steps.transforms
        resize = self.transform.transforms[0]
        state, counts = np.random.get_state(), np.zeros(256, np.int64)
        images = min(images, len(self))
        for index in range(images):
            np.random.seed(index)
            results = self.dataset.get_data_info(index)
            for step in before:
                results = step(results)
            draws, whole = np.random.get_state(), results['img']
            ours = crop(results)['img'].astype(np.int64)
            np.random.set_state(draws)
            box = crop.rand_crop_params(whole)
            with self._open(index) as image:
                image = ImageOps.exif_transpose(image).convert('RGB')
            theirs = np.asarray(
                F.resized_crop(image, *box, resize.size, resize.interpolation)
            )
            if self.reverse:
                ours = ours[..., ::-1]
            counts += np.bincount(abs(ours - theirs).ravel(), minlength=256)
        np.random.set_state(state)
        return OutputDifference(
            self.filter,
            images,
            float(counts @ np.arange(256) / counts.sum()),
            float(counts[0] / counts.sum()),
            float(counts[3:].sum() / counts.sum()),
            int(counts.nonzero()[0].max()),
        )


@dataclass(frozen=True)
class OutputDifference:
    """How far the crops of two pipelines are apart, in levels of 255.

    Attributes:
        filter: That the crops were resized with, and by what.
        images: How many crops, of as many images.
        mean: Absolute difference of a value.
        equal: Share of values without one.
        beyond_two: Share of values that differ by more than two levels.
        largest: Difference of any value.
    """

    filter: str
    images: int
    mean: float
    equal: float
    beyond_two: float
    largest: int

    def __str__(self) -> str:
        return (
            f'same crops of {self.images} images by A and B ({self.filter}): '
            f'mean difference {self.mean:.3f} of 255 levels; '
            f'{self.equal:.2%} of values equal, {self.beyond_two:.4%} more '
            f'than 2 levels apart, at most {self.largest}'
        )


def step_rate(text: str) -> float:
    """Images a second that a training step takes.

    Args:
        text: The number, or a file that ``benchmark_step.py --json`` wrote,
            whose first config counts.

    Raises:
        LaunchError: It is neither.
    """
    try:
        rate = float(text)
    except ValueError:
        try:
            report = json.loads(Path(text).read_text(encoding='utf-8'))
            rate = float(report['results'][0]['images_per_second'])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise LaunchError(
                f'--step: {text} is neither a number (images/s of a step, in '
                'one process) nor a file that benchmark_step.py --json wrote: '
                f'{error}'
            ) from None
    if not 0 < rate < float('inf'):
        raise LaunchError(f'--step: {rate} images/s; expected more than 0')
    return rate


def share_waiting(step: float, worker: float, workers: int) -> float:
    """Share of a step's time that waits for data.

    Args:
        step: Images a second that the step takes when it has them.
        worker: Images a second that a loader worker delivers.
        workers: How many there are, each on a core of its own; 0 where the
            training process loads.
    """
    if workers:
        return max(0.0, 1 - worker * workers / step)
    return step / (step + worker)


def verdict(step: float, worker: float, workers: int) -> str:
    """Whether a run would wait for data, one line; arguments as above."""
    share = share_waiting(step, worker, workers)
    cure = f'. {advice(workers, share)}' if share >= THRESHOLD else ''
    return (
        f'a step takes {step:.1f} images/s, and {workers} worker(s) deliver '
        f'{max(workers, 1) * worker:.1f}: training would wait for data '
        f'{share:.0%} of the time{cure}'
    )


def count_images(batch: dict | torch.Tensor) -> int:
    """Images in a batch; two views of one image count as one."""
    if isinstance(batch, torch.Tensor):
        return len(batch)
    return len(batch['data_samples'])


def images_per_second(loader: DataLoader, batches: int) -> float:
    """One turn of a loader: start, warm up, take the time, end.

    Args:
        loader: With endless order.
        batches: How many to time; rounded up to as many from each worker,
            since batches arrive in bursts of one from each.
    """
    workers = max(1, loader.num_workers)
    batches = -(-batches // workers) * workers
    iterator = iter(loader)
    for _ in range(WARM_UP * workers):
        next(iterator)
    start = time.perf_counter()
    images = sum(count_images(next(iterator)) for _ in range(batches))
    return images / (time.perf_counter() - start)


def compare(
    loaders: Sequence[DataLoader], rounds: int, batches: int
) -> list[list[float]]:
    """Images a second of each loader, one value a round, taken in turn.

    Args:
        loaders: One or more.
        rounds: How often each has its turn.
        batches: See :func:`images_per_second`.
    """
    rates = [[] for _ in loaders]
    for _ in range(rounds):
        for loader, values in zip(loaders, rates, strict=True):
            values.append(images_per_second(loader, batches))
    return rates
