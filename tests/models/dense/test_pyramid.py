"""Levels from one map: their shapes, values, types, and bad input."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ropim_mm.errors import InputError
from ropim_mm.registry import MODELS


def build(**options):
    torch.manual_seed(0)
    settings = dict(type='ropim_mm.SimpleFeaturePyramid', in_channels=8)
    return MODELS.build({**settings, **options})


@pytest.mark.parametrize(
    ('grid', 'below'),
    [((4, 6), [(2, 3), (1, 2)]), ((5, 3), [(3, 2), (2, 1)])],
)
def test_shapes(grid, below):
    h, w = grid
    levels = build(out_channels=12)((torch.randn(2, 8, h, w),))
    assert [tuple(level.shape) for level in levels] == [
        (2, 12, 4 * h, 4 * w),
        (2, 12, 2 * h, 2 * w),
        (2, 12, h, w),
        *((2, 12, *size) for size in below),
    ]


def test_one_row_of_patches_is_enough():
    levels = build()([torch.randn(1, 8, 1, 3)])
    assert [tuple(level.shape[2:]) for level in levels] == [
        (4, 12), (2, 6), (1, 3), (1, 2), (1, 1),
    ]  # fmt: skip


def test_more_levels():
    levels = build(num_outs=7)([torch.randn(1, 8, 8, 8)])
    assert [level.shape[-1] for level in levels] == [32, 16, 8, 4, 2, 1, 1]
    assert len(build(num_outs=4)([torch.randn(1, 8, 8, 8)])) == 4


def test_values_are_those_of_the_steps_written_out():
    """From the last map alone; no activation after the convolutions."""
    pyramid = build(in_channels=8, out_channels=4)
    with torch.no_grad():  # norms that start as 1 and 0 hide errors
        for parameter in pyramid.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    x = torch.randn(2, 8, 4, 6)
    levels = pyramid([torch.randn(2, 8, 4, 6), x])

    def norm(x, layer):
        mean = x.mean(1, keepdim=True)
        var = x.var(1, unbiased=False, keepdim=True)
        x = (x - mean) / torch.sqrt(var + 1e-6)
        return x * layer.weight[:, None, None] + layer.bias[:, None, None]

    def up(x, layer):
        # Each pixel becomes 2 x 2, of its own.
        y = torch.einsum('nihw,iokl->nohkwl', x, layer.weight)
        return y.flatten(4, 5).flatten(2, 3) + layer.bias[:, None, None]

    first, gelu_norm, gelu, second = pyramid.scales[0]
    assert isinstance(gelu, nn.GELU)
    maps = (
        up(F.gelu(norm(up(x, first), gelu_norm)), second),
        up(x, pyramid.scales[1]),
        x,
        x.unflatten(2, (2, 2)).unflatten(4, (3, 2)).amax((3, 5)),
    )
    for level, map_, output in zip(
        levels, maps, pyramid.outputs, strict=False
    ):
        one, norm1, three, norm2 = output
        y = torch.einsum('nihw,oi->nohw', map_, one.weight[:, :, 0, 0])
        y = F.conv2d(norm(y, norm1), three.weight, padding=1)
        torch.testing.assert_close(level, norm(y, norm2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(levels[4], levels[3][:, :, ::2, ::2])


def test_widths_and_parameters():
    """ViT-B's: 768 channels become 192 and 384 on the finer levels."""
    with torch.device('meta'):
        pyramid = build(in_channels=768)
    shapes = {n: tuple(p.shape) for n, p in pyramid.named_parameters()}
    assert shapes['scales.0.0.weight'] == (768, 384, 2, 2)
    assert shapes['scales.0.3.weight'] == (384, 192, 2, 2)
    assert shapes['scales.1.weight'] == (768, 384, 2, 2)
    assert [shapes[f'outputs.{i}.0.weight'] for i in range(4)] == [
        (256, 192, 1, 1),
        (256, 384, 1, 1),
        (256, 768, 1, 1),
        (256, 768, 1, 1),
    ]
    assert all(shapes[f'outputs.{i}.2.weight'][2:] == (3, 3) for i in range(4))
    # Norms follow the convolutions, which have no biases of their own.
    assert {n for n in shapes if n.endswith('bias')} == {
        'scales.0.0.bias',
        'scales.0.1.bias',
        'scales.0.3.bias',
        'scales.1.bias',
        *(f'outputs.{i}.{k}.bias' for i in range(4) for k in (1, 3)),
    }


def test_every_weight_gets_a_gradient():
    pyramid = build()
    # A norm's output has mean 0 over channels: its sum has no gradient.
    loss = sum(
        (level * torch.randn_like(level)).sum()
        for level in pyramid([torch.randn(1, 8, 4, 4)])
    )
    loss.backward()
    for name, parameter in pyramid.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_another_norm():
    pyramid = build(norm_cfg=dict(type='BN'))
    kinds = [m for m in pyramid.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(kinds) == 9


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            dict(in_channels=10),
            'neck.in_channels is 10; expected a multiple of 4',
        ),
        (dict(in_channels=0), 'neck.in_channels is 0; expected a multiple'),
        (dict(num_outs=3), 'neck.num_outs is 3; expected at least 4'),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        build(**options)
