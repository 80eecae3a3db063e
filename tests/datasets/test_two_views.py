from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.registry import DefaultScope
from PIL import Image, ImageFilter, ImageOps

from ropim_mm.datasets.transforms import TwoViews
from ropim_mm.engine.seeding import seed_everything

BASE = (
    Path(__file__).resolve().parents[2]
    / 'configs/_base_/datasets/imagenet_bs256_conmim.py'
)


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.fixture
def image():
    """Neighbours are alike, as in photos."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    return np.array(small.resize((160, 120), Image.Resampling.BICUBIC))


def recipe(**probabilities):
    """The pipeline of the configs, with other probabilities."""
    steps = Config.fromfile(BASE).train_pipeline[1:]
    (views,) = [s for s in steps if s['type'] == 'ropim_mm.TwoViews']
    for step in views['strong']:
        step['prob'] = probabilities.get(step['type'], 0.0)
    return Compose(steps)


def run(pipeline, image, seed=0):
    seed_everything(seed)
    return pipeline(dict(img=image, img_shape=image.shape[:2]))


def test_recipe_is_the_published_one():
    steps = Config.fromfile(BASE).train_pipeline
    strong = {s['type']: s for s in steps[3]['strong']}
    assert [s['prob'] for s in strong.values()] == [0.8, 0.2, 0.1, 0.2]
    (jitter,) = strong['RandomApply']['transforms']
    assert [jitter[k] for k in ('brightness', 'contrast')] == [0.4, 0.4]
    assert (jitter['saturation'], jitter['hue']) == (0.2, 0.1)


def test_without_strong_steps_the_views_are_the_same_pixels(image):
    for seed in range(20):
        weak, strong = run(recipe(), image, seed)['inputs']
        assert weak.shape == (3, 224, 224) and weak.dtype == torch.uint8
        assert torch.equal(weak, strong)


def test_views_stay_aligned(image):
    """A turned colour is at the same pixel: one view gives the other."""
    for seed in range(5):
        weak, strong = run(recipe(Solarize=1.0), image, seed)['inputs']
        expected = torch.where(weak < 128, weak, 255 - weak)
        assert torch.equal(strong, expected)
    crops = {run(recipe(), image, s)['inputs'][0].sum().item() for s in (1, 2)}
    assert len(crops) == 2


def test_grey_of_the_blue_green_red_image(image):
    weak, strong = run(recipe(RandomGrayscale=1.0), image)['inputs']
    blue, green, red = weak.double()
    grey = 0.114 * blue + 0.587 * green + 0.299 * red
    assert (strong[0] == strong[1]).all() and (strong[1] == strong[2]).all()
    assert (strong[0] - grey).abs().max() <= 1
    pil = Image.fromarray(weak.flip(0).permute(1, 2, 0).numpy()).convert('L')
    assert np.abs(np.asarray(pil) - strong[0].numpy().astype(int)).max() <= 1


def test_blur_of_a_radius_in_the_range(image):
    radii = []
    for seed in range(12):
        weak, strong = run(recipe(GaussianBlur=1.0), image, seed)['inputs']
        picture = Image.fromarray(weak.permute(1, 2, 0).numpy())
        # Which radius it was, to a hundredth.
        errors = {
            r: np.abs(
                np.asarray(picture.filter(ImageFilter.GaussianBlur(r)), int)
                - strong.permute(1, 2, 0).numpy()
            ).mean()
            for r in np.arange(0.1, 2.01, 0.1).tolist()
        }
        best = min(errors, key=errors.get)
        assert errors[best] < 1
        radii.append(best)
    assert min(radii) < 0.8 and max(radii) > 1.3


def test_jitter_keeps_the_places_of_edges(image):
    weak, strong = run(recipe(RandomApply=1.0), image)['inputs']
    assert not torch.equal(weak, strong)
    # Brightness rises and falls at the same pixels.
    flat = [v.double().mean(0).flatten() for v in (weak, strong)]
    assert torch.corrcoef(torch.stack(flat))[0, 1] > 0.9


def test_solarize_is_pillows(image):
    weak, strong = run(recipe(Solarize=1.0), image)['inputs']
    pil = ImageOps.solarize(Image.fromarray(weak.permute(1, 2, 0).numpy()))
    assert np.array_equal(np.asarray(pil), strong.permute(1, 2, 0).numpy())


def test_batches_are_two_tensors(image):
    batch = default_collate([run(recipe(), image, s) for s in range(3)])
    assert [v.shape for v in batch['inputs']] == [(3, 3, 224, 224)] * 2
    assert len(batch['data_samples']) == 3


def test_weak_view_is_not_touched(image):
    def darken(results):
        results['img'] //= 2
        results['note'] = 'dropped'
        return results

    results = TwoViews([darken])(dict(img=image.copy(), kept=1))
    weak, strong = results['img']
    assert np.array_equal(weak, image)
    assert np.array_equal(strong, image // 2)
    assert sorted(results) == ['img', 'kept']


@pytest.mark.parametrize(
    'step',
    [
        dict(type='Resize', scale=(80, 60)),
        dict(type='RandomGrayscale', prob=1.0),
    ],
)
def test_a_view_of_another_shape(image, step):
    with pytest.raises(ValueError, match='the weak one .120, 160, 3.;'):
        TwoViews([step])(dict(img=image))
