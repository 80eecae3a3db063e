"""Numbers behind the pictures of LoMaR, R-MAE and ConMIM."""

import numpy as np
import pytest
import torch
from mmpretrain.models.utils import SelfSupDataPreprocessor

import tiny_models
from ropim_mm.datasets.regions import felzenszwalb_maps
from ropim_mm.models.layers.patches import patchify
from ropim_mm.visualization import EXPLAINERS, explain
from ropim_mm.visualization.reconstruction.marking import (
    GREEN,
    RED,
    colours,
    fade,
    frame,
    over_pixels,
    tint,
)

SIZE, PATCH, GRID = (32, 48), (8, 12), (4, 4)
MEAN, STD = [100.0, 110.0, 120.0], [50.0, 60.0, 70.0]
# A pixel that stands for nothing: the mean colour.
BLANK = torch.tensor(MEAN).view(3, 1, 1)


def make(method: str, channels: int = 3, **options):
    model = tiny_models.build(
        method, img_size=SIZE, patch_size=PATCH, in_channels=channels
    )
    model.data_preprocessor = SelfSupDataPreprocessor(
        mean=MEAN[:channels], std=STD[:channels]
    )
    for name, value in options.items():
        setattr(model, name, value)
    return model


@pytest.fixture
def pictures():
    """Two smooth images of which patches differ."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
    return list(coarse.repeat(4, axis=1).repeat(4, axis=2))


def draws(model, pictures, seeds):
    explainer = EXPLAINERS.of(model)
    return [
        explainer.draw(
            model,
            picture.transpose(2, 0, 1),
            torch.Generator().manual_seed(seed),
        )
        for picture, seed in zip(pictures, seeds, strict=True)
    ]


def patch_mask(mask: torch.Tensor) -> torch.Tensor:
    """bool (B, L) -> (B, 1, H, W)"""
    mask = mask.view(-1, 1, *GRID)
    return mask.repeat_interleave(PATCH[0], 2).repeat_interleave(PATCH[1], 3)


def titles(panels) -> list[str]:
    return [panel.title for panel in panels]


@pytest.mark.parametrize('method', tiny_models.METHODS)
@pytest.mark.parametrize('channels', [1, 3])
def test_all_methods(method, channels, pictures):
    model = make(method, channels).train()
    state = torch.get_rng_state()
    first = explain(model, pictures, [0, 1])
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and model.backbone.training
    again = explain(model, pictures, [0, 1])
    other = explain(model, pictures, [0, 2])
    alone = explain(model, pictures[1:], [1])

    def all_pixels(found):
        tables = [p for d in found.details for _, row in d.rows for p in row]
        return [panel.pixels for panel in (*found.panels, *tables)]

    assert first.panels[0].title == 'input'
    for one, two, three, four in zip(
        *map(all_pixels, (first, again, other, alone)), strict=True
    ):
        assert one.dtype == torch.float32
        assert one.shape[0] == 2 and one.shape[1] in (1, 3)
        assert torch.equal(one, two)
        torch.testing.assert_close(one[0], three[0], rtol=0, atol=0.05)
        torch.testing.assert_close(one[1], four[0], rtol=0, atol=0.05)
    shown = (first.panels[1].pixels, other.panels[1].pixels)
    assert not torch.equal(shown[0][1], shown[1][1])
    for found in first.details:
        assert len({tuple(titles(row)) for _, row in found.rows}) == 1
        assert len({label for label, _ in found.rows}) == len(found.rows)


WINDOW = ['original', 'as shown', 'predicted', 'shown + predicted']


@pytest.mark.parametrize('norm_pix', [True, False])
def test_lomar_true_prediction_gives_the_image(
    pictures, monkeypatch, norm_pix
):
    """Normalised targets come back as the pixels they were made of."""
    model = make('lomar')
    model.head.norm_pix = norm_pix
    reconstruct = model.reconstruct

    def perfect(*args):
        seen = reconstruct(*args)
        object.__setattr__(seen, 'pred', model.head.target(seen.patches))
        return seen

    monkeypatch.setattr(model, 'reconstruct', perfect)
    found = explain(model, pictures, [0, 1])
    assert ('normalised patches' in found.note) is norm_pix
    x, _, _, composed = (panel.pixels for panel in found.panels)
    torch.testing.assert_close(composed, x, rtol=0, atol=0.05)
    for _, row in found.details[0].rows:
        assert titles(row) == WINDOW
        assert max(row[3].distance(row[0])) < 0.05
        assert min(row[1].distance(row[0])) > 5


def test_lomar_windows_are_in_their_places(pictures):
    model = make('lomar')
    found = explain(model, pictures, [3, 4])
    samples = draws(model, pictures, [3, 4])
    x, shown, predicted, composed = (panel.pixels for panel in found.panels)
    rows, columns = PATCH
    for i, sample in enumerate(samples):
        inside = torch.zeros(GRID, dtype=torch.bool)
        hidden = torch.zeros(GRID, dtype=torch.bool)
        tops, lefts = sample.window_tops, sample.window_lefts
        for top, left, mask in zip(
            tops.tolist(), lefts.tolist(), sample.window_mask, strict=True
        ):
            inside[top : top + 2, left : left + 2] = True
            # A later window lies on top.
            hidden[top : top + 2, left : left + 2] = mask.view(2, 2)
        inside, hidden = (
            patch_mask(m.flatten()[None])[0, 0] for m in (inside, hidden)
        )
        torch.testing.assert_close(
            shown[i][:, ~inside], fade(x[i])[:, ~inside], rtol=0, atol=1e-3
        )
        blank = BLANK.expand_as(x[i])
        torch.testing.assert_close(
            shown[i][:, hidden], blank[:, hidden], rtol=0, atol=1e-3
        )
        visible = inside & ~hidden
        torch.testing.assert_close(
            shown[i][:, visible], x[i][:, visible], rtol=0, atol=1e-3
        )
        faded = fade(x[i])
        torch.testing.assert_close(
            predicted[i][:, visible], faded[:, visible], rtol=0, atol=1e-3
        )
        assert torch.equal(composed[i][:, hidden], predicted[i][:, hidden])
        torch.testing.assert_close(
            composed[i][:, ~hidden], x[i][:, ~hidden], rtol=0, atol=1e-3
        )
        _, window = found.details[0].rows[0]
        top, left = tops[0] * rows, lefts[0] * columns
        torch.testing.assert_close(
            window[0].pixels[i],
            x[i][:, top : top + 2 * rows, left : left + 2 * columns],
            rtol=0,
            atol=1e-3,
        )


def test_rmae_true_predictions(pictures, monkeypatch):
    """The image comes back, and regions where they were hidden."""
    model = make('rmae')
    found = explain(model, pictures, [0, 1])
    samples = draws(model, pictures, [0, 1])
    predict = model.predict
    regions = torch.stack([s.regions for s in samples]).float()

    def perfect(inputs, samples):
        out = predict(inputs, samples)
        ids = torch.arange(16).expand(2, -1)
        out['pixels'] = model.head.target(inputs, ids)
        logits = patchify(regions, PATCH).view(2, 16, 2, -1).transpose(1, 2)
        out['regions'] = (logits * 2 - 1) * 20
        return out

    x = found.panels[0].pixels
    assert found.panels[3].distance(found.panels[0])[0] > 5
    monkeypatch.setattr(model, 'predict', perfect)
    found = explain(model, pictures, [0, 1])
    assert titles(found.panels) == [
        'input',
        'shown',
        'predicted',
        'shown + predicted',
    ]
    torch.testing.assert_close(found.panels[3].pixels, x, rtol=0, atol=0.05)
    assert [label for label, _ in found.details[0].rows] == [
        'region 1',
        'region 2',
    ]
    for number, (_, row) in enumerate(found.details[0].rows):
        truth = 255 * regions[:, number : number + 1]
        assert titles(row) == [
            'region in the input',
            'region',
            'shown',
            'predicted',
            'shown + predicted',
        ]
        inside = truth.expand_as(x) > 0
        cut_out = torch.where(inside, x, fade(x))
        assert torch.equal(row[0].pixels, cut_out)
        for panel in (row[1], row[4]):
            torch.testing.assert_close(panel.pixels, truth, rtol=0, atol=0.01)
        seen = row[2].pixels != 127.5
        torch.testing.assert_close(
            row[3].pixels,
            torch.where(seen, fade(truth), truth),
            rtol=0,
            atol=0.01,
        )
        for caption in row[3].captions:
            assert caption in ('IoU where hidden 1.00', 'nothing there, none '
                               'found')  # fmt: skip


def test_rmae_hides_what_the_model_does_not_see(pictures):
    model = make('rmae', region_mask_ratio=0.5)
    found = explain(model, pictures, [5, 6])
    samples = draws(model, pictures, [5, 6])
    x, shown, predicted, composed = (panel.pixels for panel in found.panels)
    ids = torch.stack([s.shuffle_ids for s in samples])
    for count, picture, blank in (
        (4, shown, BLANK.expand_as(x)),
        (8, found.details[0].rows[0][1][2].pixels, torch.tensor(127.5)),
    ):
        mask = torch.ones(2, 16, dtype=torch.bool)
        mask.scatter_(1, ids[:, :count], False)
        hidden = patch_mask(mask).expand_as(picture)
        blank = blank.expand_as(picture)
        torch.testing.assert_close(
            picture[hidden], blank[hidden], rtol=0, atol=1e-3
        )
        if count == 4:
            assert torch.equal(picture[~hidden], x[~hidden])
            assert torch.equal(predicted[~hidden], fade(x)[~hidden])
            assert torch.equal(composed[hidden], predicted[hidden])


def test_rmae_without_regions_or_without_pixels(pictures):
    plain = explain(make('rmae', num_regions=0), pictures, [0, 1])
    assert plain.details == []
    assert len(plain.panels) == 4
    model = make('rmae')
    model.neck = None
    alone = explain(model, pictures, [0, 1])
    assert titles(alone.panels) == ['input', 'shown']
    assert len(alone.details[0].rows) == 2


def test_rmae_regions_are_segments_of_the_picture():
    """The scale of the label maps for 224 px, in proportion to the size."""
    picture = np.zeros((*SIZE, 3), np.uint8)
    picture[:, 24:] = 255
    scale = round(1000 * 32 * 48 / 224**2)
    (segments,) = felzenszwalb_maps(picture, [scale], [scale])
    (sample,) = draws(make('rmae'), [picture], [0])
    for region in sample.regions.numpy():
        (label,) = np.unique(segments[region])
        np.testing.assert_array_equal(region, segments == label)
    assert not torch.equal(*sample.regions)


def test_conmim_says_which_patches_are_right(pictures):
    """The features of the momentum copy given, the student's made of them."""
    model = make('conmim')
    target = torch.randn(1, 17, 8)
    student = target.clone()
    (sample, _) = draws(model, pictures, [0, 1])
    masked = sample.mask.flatten().nonzero().squeeze(1).tolist()
    # One masked patch looks like its neighbour on the right.
    wrong = masked[0]
    student[0, 1 + wrong] = target[0, 1 + (wrong + 1) % 16]
    model.neck.forward = lambda tokens: student
    model.momentum.neck.forward = lambda tokens: target
    found = explain(model, pictures[:1], [0])
    assert titles(found.panels) == [
        'input',
        'student sees',
        'momentum copy sees',
        'nearest is right',
    ]
    x, shown, other, answers = (panel.pixels for panel in found.panels)
    count = len(masked)
    assert found.panels[3].captions == [
        f'{(count - 1) / count:.0%} of {count} right'
    ]
    pale = fade(x, 0.6)
    for patch in range(16):
        where = patch_mask(torch.arange(16)[None] == patch)
        expected = pale
        if patch in masked:
            colour = RED if patch == wrong else GREEN
            expected = tint(pale, where, colour)
            blank = BLANK.expand_as(x)
            area = where.expand_as(x)
            torch.testing.assert_close(
                shown[area], blank[area], rtol=0, atol=1e-3
            )
        area = where.expand_as(answers)
        torch.testing.assert_close(answers[area], expected[area])
    # Recoloured, but with the same things in the same places.
    assert (other - x).abs().mean() > 3
    grey = torch.stack([other.mean(1).flatten(), x.mean(1).flatten()])
    assert torch.corrcoef(grey)[0, 1] > 0.8
    ranks = [row[1].captions[0] for _, row in found.details[0].rows]
    assert len(ranks) == 4
    assert set(ranks) <= {f'own place: rank {r} of 16' for r in range(1, 17)}
    assert ranks.count('own place: rank 1 of 16') >= 3


def test_marks():
    values = torch.arange(6.0).view(1, 6)
    image = over_pixels(values, (2, 3), (2, 1))
    assert image.shape == (1, 1, 4, 3)
    assert image[0, 0].tolist() == [[0, 1, 2]] * 2 + [[3, 4, 5]] * 2
    white = torch.full((1, 1, 4, 3), 200.0)
    assert fade(white, 0.5).unique().tolist() == [227.5]
    half = tint(white, image > 4, (100, 0, 0), share=0.5)
    assert half[0, :, 3, 2].tolist() == [150.0, 100.0, 100.0]
    assert half[0, :, 0, 0].tolist() == [200.0] * 3

    framed = frame(
        torch.zeros(2, 1, 24, 32), torch.tensor([0, 5]), (3, 4), 8, GREEN
    )
    green = (framed == torch.tensor(GREEN).view(1, 3, 1, 1)).all(1)
    # At the border nothing is outside of the patch to be painted on.
    assert green.sum((1, 2)).tolist() == [2 * 8 + 1, 10 * 10 - 8 * 8]
    assert not green[1, 8:16, 8:16].any()
    assert green[1, 7, 7:17].all()

    ends = colours(torch.tensor([-1.0, 0.0, 1.0, 9.0]).view(1, 1, 2, 2))
    assert ends.shape == (1, 3, 2, 2)
    assert ends[0, :, 0, 0].tolist() == ends[0, :, 0, 1].tolist()
    assert ends[0, :, 1, 0].tolist() == [253, 231, 37]
    steps = colours(torch.linspace(0, 1, 33).view(1, 1, 1, 33))[0, :, 0]
    luma = torch.tensor([0.299, 0.587, 0.114]) @ steps
    assert (luma.diff() > 0).all()
