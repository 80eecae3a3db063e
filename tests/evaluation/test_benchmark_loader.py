import io
import json
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import tiny_models
from ropim_mm.engine.distributed import LaunchError
from ropim_mm.evaluation.benchmark_loader import (
    EndlessSampler,
    LoaderSpec,
    build_loader,
    compare,
    count_images,
    images_per_second,
    share_waiting,
    step_rate,
    verdict,
)


@pytest.fixture(scope='module')
def config(request):
    name = 'ropim/ropim_vit-base-p16_8xb128-amp-coslr-300e_in1k.py'
    return str(request.config.rootpath / 'configs' / name)


@pytest.fixture
def options(tmp_path):
    """Eight grey images of 40 px, cropped to 16."""
    (tmp_path / 'train').mkdir()
    for i in range(8):
        pixels = np.full((40, 40, 3), 100, np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'train' / f'{i}.png')
    return {
        'train_dataloader.dataset.data_root': str(tmp_path),
        'train_dataloader.dataset.pipeline.1.scale': 16,
    }


def test_delivers_what_training_gets(config, options):
    loader = build_loader(LoaderSpec(config, options, 0, batch_size=3))
    iterator = iter(loader)
    for _ in range(8):  # three epochs' worth: no end
        batch = next(iterator)
        assert batch['inputs'].shape == (3, 3, 16, 16)
        assert batch['inputs'].dtype == torch.uint8
        assert count_images(batch) == 3


@pytest.mark.parametrize('method', tiny_models.METHODS)
def test_batches_of_all_methods(method, options, tmp_path):
    """Two views of an image are one image; regions come with theirs."""
    path = tmp_path / 'config.py'
    path.write_text(tiny_models.config_text(method, tmp_path / 'train'))
    loader = build_loader(LoaderSpec(str(path), {}, 1))
    assert len(loader.dataset) == 8
    batch = next(iter(loader))
    assert count_images(batch) == 4
    inputs = batch['inputs']
    views = inputs if isinstance(inputs, list) else [inputs]
    assert [tuple(v.shape) for v in views] == [(4, 3, 32, 32)] * len(views)
    assert len(views) == (2 if method == 'conmim' else 1)
    assert ('region_bits' in batch) is (method == 'rmae')
    assert images_per_second(loader, 2) > 0


def test_workers_of_the_config(config, options):
    loader = build_loader(LoaderSpec(config, options, 2, batch_size=2))
    assert loader.num_workers == 2
    assert not loader.persistent_workers
    assert loader.multiprocessing_context.get_start_method() == 'fork'
    first, second = compare([loader, loader], rounds=2, batches=3)
    assert len(first) == len(second) == 2
    assert min(first + second) > 0


def test_torchvision_reference(config, options):
    spec = LoaderSpec(config, options, 0, batch_size=4, reference=True)
    loader = build_loader(spec)
    assert len(loader.dataset) == 8
    images = next(iter(loader))
    assert images.shape == (4, 3, 16, 16)
    assert count_images(images) == 4
    mean = torch.tensor([0.485, 0.456, 0.406])
    std = torch.tensor([0.229, 0.224, 0.225])
    expected = ((100 / 255 - mean) / std).view(1, 3, 1, 1)
    assert torch.allclose(images, expected.expand_as(images), atol=1e-6)


def test_torchvision_reference_needs_a_crop(config, options):
    options['train_dataloader.dataset.pipeline'] = [
        dict(type='ropim_mm.LoadImage'),
        dict(type='PackInputs'),
    ]
    del options['train_dataloader.dataset.pipeline.1.scale']
    with pytest.raises(LaunchError, match='needs a RandomResizedCrop'):
        build_loader(LoaderSpec(config, options, reference=True))


def photo(seed, size=(120, 90)):
    """Smooth colours and noise, a JPEG."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))
    noise = rng.integers(-20, 20, smooth.shape)
    buffer = io.BytesIO()
    Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8)).save(
        buffer, 'JPEG'
    )
    return buffer.getvalue()


@pytest.mark.parametrize('backend', ['torch', 'pillow'])
def test_difference_from_torchvision(config, options, tmp_path, backend):
    for i in range(8):
        (tmp_path / 'train' / f'{i}.png').unlink()
        (tmp_path / 'train' / f'{i}.jpg').write_bytes(photo(i))
    options['train_dataloader.dataset.pipeline.1.backend'] = backend
    spec = LoaderSpec(config, options, 0, batch_size=4, reference=True)
    np.random.seed(5)
    expected = np.random.rand(2)
    np.random.seed(5)
    first = np.random.rand()
    found = build_loader(spec).dataset.difference(6)
    assert [first, np.random.rand()] == expected.tolist()
    assert found.images == 6
    assert found.filter == f'bilinear, by {backend} and by Pillow'
    if backend == 'pillow':
        assert (found.mean, found.equal, found.largest) == (0, 1, 0)
    else:
        assert 0 < found.mean < 0.1
        assert 0.9 < found.equal < 1
        assert found.beyond_two < 0.001
    assert (
        f'same crops of 6 images by A and B ({found.filter}): mean difference '
        f'{found.mean:.3f} of 255 levels; {found.equal:.2%} of values equal'
    ) in str(found)


def test_difference_of_another_filter_is_seen(config, options, tmp_path):
    for i in range(8):
        (tmp_path / 'train' / f'{i}.jpg').write_bytes(photo(i))
        (tmp_path / 'train' / f'{i}.png').unlink()
    spec = LoaderSpec(config, options, 0, reference=True)
    dataset = build_loader(spec).dataset
    dataset.steps.transforms[-1].interpolation = 'bicubic'
    found = dataset.difference()
    assert found.images == 8
    assert found.mean > 0.3
    assert found.equal < 0.8
    assert found.largest > 2


@pytest.mark.parametrize(
    ('step', 'worker', 'workers', 'share'),
    [(100, 50, 2, 0), (100, 90, 4, 0), (100, 30, 2, 0.4), (100, 300, 0, 0.25)],
)
def test_share_of_waiting(step, worker, workers, share):
    assert share_waiting(step, worker, workers) == pytest.approx(share)
    line = verdict(step, worker, workers)
    delivered = f'{max(1, workers) * worker:.1f}'
    assert line.startswith(
        f'a step takes 100.0 images/s, and {workers} worker(s) deliver '
        f'{delivered}: training would wait for data {share:.0%} of the time'
    )
    assert ('num_workers' in line) is (share > 0)


def test_rate_of_a_step(tmp_path):
    assert step_rate('12.5') == 12.5
    report = tmp_path / 'step.json'
    report.write_text(json.dumps(dict(results=[dict(images_per_second=7)])))
    assert step_rate(str(report)) == 7
    report.write_text('{"results": []}')
    for text in (str(report), str(tmp_path / 'none'), 'fast'):
        with pytest.raises(LaunchError, match='neither a number .images/s'):
            step_rate(text)
    for text in ('0', '-3', 'inf', 'nan'):
        with pytest.raises(LaunchError, match='expected more than 0'):
            step_rate(text)


def test_missing_folder(config, tmp_path):
    path = str(tmp_path / 'nowhere')
    options = {'train_dataloader.dataset.data_root': path}
    with pytest.raises(LaunchError, match=f'data_root: {path} not found'):
        build_loader(LoaderSpec(config, options))


def test_endless_sampler_starts_again():
    sampler = EndlessSampler(range(3))
    for _ in range(2):
        iterator = iter(sampler)
        for _ in range(2):
            assert {next(iterator) for _ in range(3)} == {0, 1, 2}


class Slow(Dataset):
    """Fifty images a second at most."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(0.02)
        return torch.zeros(1)


@pytest.mark.parametrize('workers', [0, 1, 2])
def test_batches_made_beforehand_do_not_count(workers):
    """No more than the workers can make, however many lie ready."""
    loader = DataLoader(
        Slow(), 2, num_workers=workers, prefetch_factor=8 if workers else None
    )
    rate = images_per_second(loader, 10)
    assert rate < 1.3 * 50 * max(1, workers)
    assert rate > 5
