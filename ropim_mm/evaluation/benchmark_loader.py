"""How many images a second a config's training loader delivers.

Reading, decoding, the pipeline's steps and collating, in worker processes as
in training; the model's own work (normalising, the copy to a GPU) is not in
it. The order of images is random and endless, so that an epoch's end does not
enter a measurement.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import cv2
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import transforms as T

from ropim_mm.engine import launch
from ropim_mm.engine.distributed import LaunchError, adapt_dataloader

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
        info = self.dataset.get_data_info(index)
        source = info.get('img_source')
        file = io.BytesIO(source()) if source else info['img_path']
        with Image.open(file) as image:
            return self.transform(image.convert('RGB'))


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
