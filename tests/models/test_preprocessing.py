"""Regions from the batch onto the data samples."""

import pytest
import torch
from mmengine.dataset import default_collate
from mmpretrain.models.utils import SelfSupDataPreprocessor

from ropim_mm.datasets.transforms import PackRegions
from ropim_mm.errors import InputError
from ropim_mm.models import RegionDataPreprocessor

NORM = dict(mean=[1.0, 2.0, 3.0], std=[2.0, 2.0, 4.0], to_rgb=True)


def sample(regions: int = 0, ids: bool = False) -> dict:
    results = dict(
        img=torch.randint(256, (4, 6, 3), dtype=torch.uint8).numpy(),
        img_path='x.jpg',
    )
    if regions:
        results['regions'] = torch.rand(regions, 4, 6) > 0.5
    if ids:
        results['shuffle_ids'] = torch.randperm(6)
    return results


def batch(*samples: dict) -> dict:
    return default_collate([PackRegions()(s) for s in samples])


@pytest.mark.parametrize('count', [3, 8, 11])
def test_every_sample_gets_its_own(count):
    samples = [sample(count, ids=True) for _ in range(3)]
    packed = batch(*samples)
    # On the way they are one tensor of bits.
    assert packed['region_bits'].shape == (3, -(-count // 8), 4, 6)
    assert packed['region_bits'].dtype == torch.uint8
    out = RegionDataPreprocessor(**NORM)(packed, training=True)
    assert set(out) == {'inputs', 'data_samples'}
    for given, found in zip(samples, out['data_samples'], strict=True):
        assert found.regions.dtype == torch.bool
        assert torch.equal(found.regions, given['regions'])
        assert torch.equal(found.shuffle_ids, given['shuffle_ids'])
        assert found.img_path == 'x.jpg'


def test_without_regions_it_is_mmpretrains():
    packed = batch(sample(), sample())
    assert set(packed) == {'inputs', 'data_samples'}
    out = RegionDataPreprocessor(**NORM)(packed)
    theirs = SelfSupDataPreprocessor(**NORM)(packed)
    assert torch.equal(out['inputs'], theirs['inputs'])
    assert 'regions' not in out['data_samples'][0]


def test_the_batch_is_left_as_it_is():
    packed = batch(sample(2), sample(2))
    before = dict(packed)
    RegionDataPreprocessor(**NORM)(packed)
    assert packed == before


def test_regions_need_samples():
    packed = batch(sample(2), sample(2))
    packed['data_samples'] = packed['data_samples'][:1]
    with pytest.raises(InputError, match='regions of 2 images and 1 data'):
        RegionDataPreprocessor(**NORM)(packed)


@pytest.mark.gpu
def test_on_a_gpu():
    samples = [sample(8, ids=True) for _ in range(2)]
    step = RegionDataPreprocessor(**NORM, non_blocking=True).cuda()
    out = step(batch(*samples))
    for given, found in zip(samples, out['data_samples'], strict=True):
        assert found.regions.is_cuda and found.shuffle_ids.is_cuda
        assert torch.equal(found.regions.cpu(), given['regions'])
        assert torch.equal(found.shuffle_ids.cpu(), given['shuffle_ids'])
