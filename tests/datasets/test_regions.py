"""Regions: the definition, the reference vectors, the shorter way."""

import json
from functools import partial
from math import inf, nan

import numpy as np
import pytest
import torch

from ropim_mm.datasets.label_maps import LabelMaps
from ropim_mm.datasets.regions import (
    binary_regions,
    felzenszwalb_maps,
    select_regions,
)
from ropim_mm.errors import InputError

MAPS = np.array(
    [
        [[3, 3, 0, 0], [3, 3, 0, 0], [3, 7, 7, 7], [7, 7, 7, 7]],
        [[5, 5, 5, 5], [5, 5, 5, 5], [5, 5, 5, 5], [5, 5, 5, 5]],
    ],
    dtype=np.uint8,
)


def segments(maps: int, labels: int, size=(32, 48), seed=0) -> np.ndarray:
    """Maps of rectangles, several values of which may be one label."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, labels, (maps, size[0] // 4, size[1] // 4))
    return coarse.repeat(4, 1).repeat(4, 2).astype(np.uint8)


def both(maps, *args, seed=0, **kwargs):
    """By the definition, and by the shorter way in both of its layouts."""
    ways = [lambda *a, **k: select_regions(binary_regions(maps), *a, **k)]
    for make in (LabelMaps.from_maps, LabelMaps.stacked):
        ways.append(make(maps).select)
    results = []
    for way in ways:
        torch.manual_seed(seed)
        results.append(way(*args, **kwargs))
    regions, ids = results[0]
    for other, other_ids in results[1:]:
        assert other.dtype == torch.bool
        torch.testing.assert_close(other, regions)
        assert (ids is None) == (other_ids is None)
        if ids is not None:
            torch.testing.assert_close(other_ids, ids)
    return regions, ids


def test_every_label_of_every_map_is_a_region():
    masks = binary_regions(MAPS)
    assert masks.dtype == np.bool_
    expected = [MAPS[0] == 0, MAPS[0] == 3, MAPS[0] == 7, MAPS[1] == 5]
    np.testing.assert_array_equal(masks, expected)
    assert masks[3].all()


@pytest.mark.slow
@pytest.mark.parametrize('photo', ['astronaut', 'coffee'])
def test_segmentations_are_the_stored_ones(shared, photo):
    with np.load(shared / 'parity/rmae' / f'fh_{photo}.npz') as stored:
        maps = felzenszwalb_maps(
            stored['image'], (500, 1000, 1500), (500, 1000, 1500)
        )
        expected = stored['fh_500_1000_1500']
    assert maps.dtype == np.uint8
    np.testing.assert_array_equal(maps, expected)


def test_many_segments_need_more_than_a_byte():
    noise = np.random.default_rng(0).integers(0, 256, (48, 40, 3))
    noise = noise.astype(np.uint8)
    maps = felzenszwalb_maps(noise, (1, 500), (1, 50), sigma=0)
    assert maps.dtype == np.uint16
    assert maps.shape == (2, 48, 40)
    # No number is taken twice: labels are as many as the largest says.
    assert len(np.unique(maps[0])) == maps[0].max() + 1 > 256
    assert felzenszwalb_maps(noise, (500,), (50,)).dtype == np.uint8


@pytest.mark.parametrize('replay', ['permutations', 'seed'])
def test_the_stored_choices(shared, replay):
    folder = shared / 'parity/rmae'
    manifest = json.loads((folder / 'manifest.json').read_text())
    cases = manifest['cases']['process_mask']['cases']
    assert len(cases) == 6
    with np.load(folder / 'process_mask.npz') as stored:
        arrays = dict(stored)
    for name, case in cases.items():
        maps = arrays[f'{name}/label_maps']
        for way in (
            partial(select_regions, binary_regions(maps)),
            LabelMaps.from_maps(maps).select,
            LabelMaps.stacked(maps).select,
        ):
            draws = [
                torch.from_numpy(arrays[f'{name}/randperm{i}'])
                for i in range(case['n_randperm_calls'])
            ]
            torch.manual_seed(case['torch_seed'])
            regions, ids = way(
                case['num_region'],
                case['patch_size'],
                case['region_sample_type'],
                case['filter_small_patches'],
                case['region_mask_ratio'],
                torch.randperm if replay == 'seed' else partial(take, draws),
            )
            assert not draws or replay == 'seed'
            np.testing.assert_array_equal(
                regions.numpy(), arrays[f'{name}/region'].astype(bool)
            )
            if case['region_sample_type'] == 'random':
                assert ids is None
            else:
                np.testing.assert_array_equal(
                    ids.numpy(), arrays[f'{name}/shuffle_ids']
                )


def take(draws: list[torch.Tensor], n: int) -> torch.Tensor:
    """The next of the stored permutations."""
    draw = draws.pop(0)
    assert len(draw) == n
    return draw


@pytest.mark.parametrize('labels', [2, 9, 200])
@pytest.mark.parametrize('sample_type', ['random', 'random_fg'])
@pytest.mark.parametrize('filtered', [False, True])
@pytest.mark.parametrize('count', [1, 8, 19])
def test_the_shorter_way_gives_the_same(labels, sample_type, filtered, count):
    for seed in range(3):
        maps = segments(3, labels, seed=seed)
        args = (count, (8, 16), sample_type, filtered, 0.75)
        regions, ids = both(maps, *args, seed=seed)
        assert regions.shape == (count, 32, 48)
        assert (ids is None) == (sample_type == 'random')


def test_more_regions_than_there_are_come_twice():
    regions, _ = both(MAPS, 6, 2)
    numbers = [
        next(i for i, m in enumerate(binary_regions(MAPS)) if (m == r).all())
        for r in regions.numpy()
    ]
    # 4 regions, written down twice, permuted, the first 6.
    counts = np.bincount(numbers, minlength=4)
    assert counts.sum() == 6
    assert counts.max() <= 2


def test_of_many_regions_none_comes_twice():
    maps = segments(2, 30)
    regions, _ = both(maps, 20, 8)
    assert len(torch.unique(regions.flatten(1), dim=0)) == 20


def test_no_region_left_gives_empty_maps():
    # Each region lies in one patch only.
    maps = np.arange(4).reshape(1, 2, 2).repeat(4, 1).repeat(4, 2)
    regions, _ = both(maps.astype(np.uint8), 3, 4, filter_small_patches=True)
    assert regions.shape == (3, 8, 8)
    assert not regions.any()


def test_the_filter_keeps_what_touches_two_patches():
    # 0 touches one patch of 4 pixels, 1 one by a hair, 2 three.
    maps = np.full((1, 8, 8), 2, dtype=np.uint8)
    maps[0, :4, :3] = 0
    maps[0, 4:, 4] = 1
    maps[0, :4, 3] = 0
    regions, _ = both(maps, 5, 4, filter_small_patches=True)
    assert (regions == torch.from_numpy(maps == 2)).all()


def test_foreground_regions_touch_a_visible_patch():
    maps = segments(2, 40, size=(64, 64))
    for seed in range(5):
        regions, ids = both(maps, 4, 16, 'random_fg', False, 0.75, seed=seed)
        assert sorted(ids.tolist()) == list(range(16))
        visible = ids[: int(16 * 0.25)]
        cells = regions.reshape(4, 4, 16, 4, 16).any(dim=(2, 4)).flatten(1)
        assert cells[:, visible].any(dim=1).all()


def test_all_regions_are_equally_likely():
    maps = LabelMaps.from_maps(segments(1, 10))
    torch.manual_seed(0)
    masks = maps.masks(range(10))
    hits = np.zeros(10)
    for _ in range(400):
        (region,), _ = maps.select(1, 8)
        hits += (masks == region.numpy()).all(axis=(1, 2))
    assert hits.sum() == 400
    # Standard deviation 6; 5 of them.
    assert np.abs(hits - 40).max() < 30


def test_bad_settings_are_named():
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    with pytest.raises(InputError, match=r'1 scales \[5\] and 2 min_sizes'):
        felzenszwalb_maps(image, [5], [5, 6])
    with pytest.raises(InputError, match='0 scales'):
        felzenszwalb_maps(image, [], [])
    with pytest.raises(InputError, match='must not be negative'):
        felzenszwalb_maps(image, [5], [5], sigma=-1)
    for bad in ((nan, 5, 1), (5, inf, 1), (5, 5, nan), (inf, 5, 1)):
        with pytest.raises(InputError, match='must be finite numbers'):
            felzenszwalb_maps(image, bad[:1], bad[1:2], sigma=bad[2])
    with pytest.raises(InputError, match=r'\[2\.5\].*expected whole ones'):
        felzenszwalb_maps(image, [5], [2.5])
    with pytest.raises(InputError, match=r'float64 \(8, 8\); expected uint8'):
        felzenszwalb_maps(image[..., 0].astype(float), [5], [5])
    masks = binary_regions(MAPS)
    with pytest.raises(InputError, match="'all'; expected one of"):
        select_regions(masks, 2, 2, 'all')
    with pytest.raises(InputError, match=r'4x4 pixels .* patches of 3x3'):
        select_regions(masks, 2, 3)
    with pytest.raises(InputError, match=r'4x4 pixels .* patches of 3x3'):
        LabelMaps.from_maps(MAPS).select(2, 3)
