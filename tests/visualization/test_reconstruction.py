"""Numbers behind the pictures of what a model was shown and predicted."""

import numpy as np
import pytest
import torch
from mmpretrain.models.utils import SelfSupDataPreprocessor
from torch import nn

from ropim_mm.models.layers import make_sketch, patchify
from ropim_mm.visualization import (
    EXPLAINERS,
    Panel,
    ROPIMExplainer,
    fit_image,
    normalize,
    unnormalize,
)
from ropim_mm.visualization import explain as explain_whole

# All that matters of the pixels here is how many there are.
PIXELS = np.zeros((3, 16, 48), np.uint8)
TITLES = [
    'input',
    'shown to the model',
    'removed',
    'predicted',
    'shown + predicted',
]


def explain(*args):
    return explain_whole(*args).panels


def by_title(panels):
    assert [panel.title for panel in panels] == TITLES
    return [panel.pixels for panel in panels]


def mean_of(model, like):
    mean = getattr(model.data_preprocessor, 'mean', torch.zeros(1, 1, 1))
    return mean.expand_as(like)


@pytest.mark.parametrize('complement', [False, True])
@pytest.mark.parametrize('scale', [None, 0.14])
@pytest.mark.parametrize('channels', [1, 3])
def test_parts_add_up_to_the_input(
    make_model, pictures, channels, scale, complement
):
    model = make_model(
        channels, sketch_scale=scale, complement_input=complement
    )
    x, shown, removed, _, _ = by_title(explain(model, pictures, [0, 1]))
    assert x.shape == (2, channels, 16, 48)
    # Each is drawn around the mean colour, which stands for zero.
    total = shown + removed - mean_of(model, x)
    torch.testing.assert_close(total, x, rtol=0, atol=1e-3)
    assert (shown - x).abs().mean() > 10


def test_without_normalisation(make_model, pictures):
    model = make_model(normalize=False)
    x, shown, removed, _, _ = by_title(explain(model, pictures, [0, 1]))
    torch.testing.assert_close(shown + removed, x, rtol=0, atol=1e-3)
    expected = np.stack(pictures).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(x.numpy(), expected)


@pytest.mark.parametrize('complement', [False, True])
def test_true_prediction_completes_the_input(
    make_model, pictures, monkeypatch, complement
):
    model = make_model(complement_input=complement)
    monkeypatch.setattr(
        model, 'reconstruct', lambda inputs, kept: patchify(inputs, (4, 8))
    )
    panels = explain(model, pictures, [0, 1])
    x, _, _, predicted, composed = by_title(panels)
    torch.testing.assert_close(predicted, x, rtol=0, atol=1e-3)
    torch.testing.assert_close(composed, x, rtol=0, atol=1e-3)
    assert max(panels[-1].distance(panels[0])) < 1e-3


def test_only_the_removed_part_is_taken_from_the_prediction(
    make_model, pictures, monkeypatch
):
    model = make_model()
    monkeypatch.setattr(
        model,
        'reconstruct',
        lambda inputs, kept: torch.zeros_like(patchify(inputs, (4, 8))),
    )
    _, shown, _, _, composed = by_title(explain(model, pictures, [0, 1]))
    torch.testing.assert_close(composed, shown, rtol=0, atol=1e-3)


def test_subspaces_swap(make_model, pictures):
    plain = explain(make_model(), pictures, [0, 1])
    swapped = explain(make_model(complement_input=True), pictures, [0, 1])
    assert torch.equal(plain[1].pixels, swapped[2].pixels)
    assert torch.equal(plain[2].pixels, swapped[1].pixels)
    formulas = [panel.formula for panel in plain]
    assert formulas == ['x', 'P x', '(I - P) x', 'y', 'P x + (I - P) y']
    formulas = [panel.formula for panel in swapped]
    assert formulas == ['x', '(I - P) x', 'P x', 'y', '(I - P) x + P y']


def test_unprojected_input_is_shown_whole(make_model, pictures):
    panels = explain(make_model(project_input=False), pictures, [0, 1])
    x, shown, removed, _, _ = by_title(panels)
    assert torch.equal(shown, x)
    assert panels[1].formula == 'x'
    assert (removed - x).abs().mean() > 1


def test_projection_is_that_of_the_sketch(make_model, pictures):
    """P as a matrix, made from the sample's fields."""
    model = make_model()
    generator = torch.Generator().manual_seed(5)
    sample = ROPIMExplainer().draw(model, PIXELS, generator)
    buckets, signs = sample.sketch_hash, sample.sketch_sign
    same = buckets[:, None] == buckets[None]
    matrix = same * signs[:, None] * signs[None] / same.sum(1)
    torch.testing.assert_close(matrix @ matrix, matrix)
    assert round(matrix.trace().item()) == 4  # ceil(0.14 * 24)

    pixels = torch.from_numpy(pictures[0].transpose(2, 0, 1))[None]
    inputs = normalize(model.data_preprocessor, pixels)
    projected = matrix @ patchify(inputs, (4, 8))[0]
    expected = unnormalize(
        model.data_preprocessor, model.to_image(projected[None], (16, 48))
    )
    shown = explain(model, pictures[:1], [5])[1].pixels
    torch.testing.assert_close(shown, expected, rtol=0, atol=1e-3)


def test_distance_of_the_composed_picture_is_the_loss(make_model, pictures):
    """With the same std everywhere, in units of it."""
    model = make_model(normalize=False)
    panels = explain(model, pictures, [3, 4])
    x = panels[0].pixels
    samples = [
        ROPIMExplainer().draw(
            model, PIXELS, torch.Generator().manual_seed(seed)
        )
        for seed in (3, 4)
    ]
    model.eval()
    with torch.no_grad():
        loss = model.loss(x, samples)['loss'].item()
    distances = panels[-1].distance(panels[0])
    assert np.mean(distances) == pytest.approx(loss, rel=1e-4)


def test_seed_decides(make_model, pictures):
    model = make_model()
    first = explain(model, pictures, [0, 1])
    again = explain(model, pictures, [0, 1])
    other = explain(model, pictures, [0, 2])
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.pixels, b.pixels)
    assert torch.equal(first[1].pixels[0], other[1].pixels[0])
    assert not torch.equal(first[1].pixels[1], other[1].pixels[1])
    # An image's picture does not depend on its batch.
    alone = explain(model, pictures[1:], [1])
    torch.testing.assert_close(
        alone[3].pixels[0], first[3].pixels[1], rtol=0, atol=1e-2
    )


def test_model_is_left_as_it_was(make_model, pictures):
    model = make_model().train()
    state = torch.get_rng_state()
    explain(model, pictures, [0, 1])
    assert model.training
    assert model.backbone.training
    assert torch.equal(torch.get_rng_state(), state)


def test_other_sizes_are_fitted(make_model):
    image = np.zeros((100, 60, 3), np.uint8)
    image[40:60] = (255, 0, 0)
    x = explain(make_model(), [image], [0])[0]
    assert x.images().shape == (1, 16, 48, 3)
    # 48 / 60 of the height, of which the middle 16 rows are all red.
    assert (x.images()[0, 2:-2] == (255, 0, 0)).all()


def test_fit_image():
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    fitted = fit_image(image, (4, 6))
    np.testing.assert_array_equal(fitted, image.transpose(2, 0, 1))
    grey = fit_image(image, (4, 6), channels=1)
    luma = image @ np.array([0.299, 0.587, 0.114])
    assert grey.shape == (1, 4, 6)
    assert np.abs(grey[0] - luma).max() <= 1
    # Wider than wanted: the centre, at its own scale.
    fitted = fit_image(image, (4, 2))
    np.testing.assert_array_equal(fitted, image[:, 2:4].transpose(2, 0, 1))


def test_normalisation_and_back():
    pixels = torch.tensor([0, 100, 255, 7]).reshape(1, 1, 2, 2)
    grey = SelfSupDataPreprocessor(mean=[100.0], std=[50.0])
    normalized = normalize(grey, pixels)
    expected = torch.tensor([-2.0, 0.0, 3.1, -1.86]).reshape(1, 1, 2, 2)
    torch.testing.assert_close(normalized, expected)
    torch.testing.assert_close(unnormalize(grey, normalized), pixels.float())


def test_pictures_are_clipped_not_wrapped():
    pixels = torch.tensor([-30.0, 300.0, 99.6, 12.2]).reshape(1, 1, 2, 2)
    images = Panel('', '', pixels).images()
    assert images.shape == (1, 2, 2, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images[0, ..., 1], [[0, 255], [100, 12]])


def test_inherited_explainer(make_model):
    model = make_model()
    child = type('Child', (type(model),), {})
    model.__class__ = child
    assert isinstance(EXPLAINERS.of(model), ROPIMExplainer)


def test_no_explainer():
    with pytest.raises(
        ValueError, match='no pictures of a Linear; expected one of .*ROPIM'
    ):
        EXPLAINERS.of(nn.Linear(1, 1))


def test_wrong_arguments(make_model, pictures):
    model = make_model()
    with pytest.raises(ValueError, match='2 images came with 1 seeds'):
        explain(model, pictures, [0])
    with pytest.raises(ValueError, match='at least one image'):
        explain(model, [], [])
    model.backbone.patch_embed.projection = nn.Conv2d(2, 16, (4, 8), (4, 8))
    with pytest.raises(ValueError, match='in_channels=2'):
        explain(model, pictures, [0, 1])


def test_two_ways_to_the_sketch_agree():
    """The explainer's fields give the projector that training draws."""
    buckets = torch.tensor([[0, 1, 2, 0, 1, 2]])
    signs = torch.tensor([[1.0, -1, 1, -1, 1, -1]])
    exact = make_sketch(buckets, signs, 3)
    loose = make_sketch(buckets, signs, 6)  # empty buckets do no harm
    tokens = torch.arange(12.0).reshape(1, 6, 2)
    torch.testing.assert_close(exact.project(tokens), loose.project(tokens))
