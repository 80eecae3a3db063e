import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.models import BEiTViT
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from ropim_mm.models.layers import patchify

ARCH = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)


def build(size=(16, 24), patch=4, channels=3, **kwargs):
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='ropim_mm.ROPIM',
            backbone=dict(
                type='ropim_mm.ROPIMViT',
                arch=ARCH,
                img_size=size,
                patch_size=patch,
                in_channels=channels,
                out_type='raw',
                final_norm=True,
                use_rel_pos_bias=False,
                use_shared_rel_pos_bias=True,
            ),
            neck=dict(
                type='ropim_mm.ROPIMNeck',
                embed_dims=16,
                patch_size=patch,
                out_channels=channels,
            ),
            head=dict(type='ropim_mm.ROPIMHead', patch_size=patch),
            **kwargs,
        )
    )
    model.init_weights()
    return model


def samples(buckets, signs):
    result = []
    for b, s in zip(buckets, signs, strict=True):
        sample = DataSample()
        sample.set_field(b, 'sketch_hash')
        sample.set_field(s, 'sketch_sign')
        result.append(sample)
    return result


def given(batch=2, length=24, size=4):
    torch.manual_seed(1)
    buckets = torch.randint(size, (batch, length))
    signs = torch.randint(2, (batch, length)).float() * 2 - 1
    return buckets, signs


def dense(buckets, signs, scale=None):
    """The projection as a matrix, from its definition."""
    batch, length = buckets.shape
    matrix = torch.zeros(batch, length, length)
    matrix.scatter_(2, buckets.unsqueeze(-1), signs.unsqueeze(-1))
    weight = matrix.abs().sum(1).clamp(min=1).reciprocal()
    weight = weight if scale is None else torch.full_like(weight, scale)
    return matrix @ torch.diag_embed(weight) @ matrix.transpose(1, 2)


@pytest.mark.parametrize('scale', [None, 0.14])
@pytest.mark.parametrize('complement', [False, True])
@pytest.mark.parametrize('project', [False, True])
def test_loss_is_the_equation(scale, complement, project):
    model = build(
        sketch_scale=scale, complement_input=complement, project_input=project
    )
    x = torch.randn(2, 3, 16, 24)
    buckets, signs = given()
    p = dense(buckets, signs, scale)
    eye = torch.eye(24)
    shown, asked = (eye - p, p) if complement else (p, eye - p)
    if not project:
        shown = eye.expand(2, -1, -1)
    tokens = model.backbone(x, lambda t: shown @ t)[0][:, 1:]
    pred = model.neck(tokens)
    expected = (asked @ (patchify(x, 4) - pred)).abs().mean()
    loss = model.loss(x, samples(buckets, signs))
    assert list(loss) == ['loss']
    torch.testing.assert_close(loss['loss'], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ('size', 'patch', 'channels'),
    [((16, 24), 4, 3), ((12, 12), 4, 1), ((8, 20), (2, 4), 5), ((6, 2), 2, 4)],
)
def test_any_grid_patch_and_channels(size, patch, channels):
    model = build(size, patch, channels)
    x = torch.randn(3, channels, *size)
    loss = model.loss(x)['loss']
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in model.parameters())
    pred = model.reconstruct(x)
    assert model.to_image(pred, size).shape == x.shape


def test_same_fields_give_the_same_numbers():
    model = build()
    x = torch.randn(2, 3, 16, 24)
    fields = samples(*given())
    torch.manual_seed(5)
    first = model.loss(x, fields)['loss']
    torch.manual_seed(6)
    assert torch.equal(model.loss(x, fields)['loss'], first)
    assert not torch.equal(model.loss(x)['loss'], model.loss(x)['loss'])


def test_samples_without_fields_are_drawn():
    model = build()
    x = torch.randn(2, 3, 16, 24)
    torch.manual_seed(5)
    drawn = model.loss(x, [DataSample(), DataSample()])['loss']
    torch.manual_seed(5)
    assert torch.equal(model.loss(x, None)['loss'], drawn)


def test_loss_is_float32_under_autocast():
    model = build()
    x = torch.randn(2, 3, 16, 24)
    fields = samples(*given())
    exact = model.loss(x, fields)['loss']
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = model.loss(x, fields)['loss']
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0)
    loss.backward()
    for name, p in model.named_parameters():
        assert p.grad.dtype == torch.float32, name


def test_training_lowers_the_loss():
    model = build()
    x = torch.rand(8, 3, 16, 24).repeat_interleave(2, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    fields = samples(*given(batch=16))
    losses = []
    for _ in range(40):
        loss = model.loss(x, fields)['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]


def test_checkpoint_is_also_mmpretrains():
    model = build()
    peer = BEiTViT(
        arch=ARCH,
        img_size=(16, 24),
        patch_size=4,
        out_type='raw',
        final_norm=True,
        use_rel_pos_bias=False,
        use_shared_rel_pos_bias=True,
    )
    result = peer.load_state_dict(model.backbone.state_dict())
    assert not result.missing_keys and not result.unexpected_keys


@pytest.mark.parametrize('scope', ['mmengine', 'mmseg', 'mmpretrain'])
def test_builds_under_any_default_scope(scope):
    with DefaultScope.overwrite_default_scope(scope):
        model = build(data_preprocessor=dict(mean=[0.0] * 3, std=[2.0] * 3))
    assert model.data_preprocessor.std.flatten().tolist() == [2.0] * 3


def test_forward_modes_of_mmpretrain():
    model = build()
    x = torch.randn(2, 3, 16, 24)
    assert model(x, mode='tensor')[0].shape == (2, 25, 16)
    assert 'loss' in model(x, [DataSample(), DataSample()], mode='loss')


def test_field_on_some_samples_only():
    fields = samples(*given())
    with pytest.raises(ValueError, match='of 2 data samples 1 carry'):
        build().loss(torch.zeros(2, 3, 16, 24), [fields[0], DataSample()])


@pytest.mark.parametrize('lost', ['sketch_hash', 'sketch_sign'])
@pytest.mark.parametrize('everywhere', [True, False])
def test_one_field_without_the_other(lost, everywhere):
    fields = samples(*given())
    for sample in fields if everywhere else fields[:1]:
        sample.pop(lost)
    expected = f'carry no `{lost}`' if everywhere else f'1 carry `{lost}`'
    with pytest.raises(ValueError, match=expected):
        build().loss(torch.zeros(2, 3, 16, 24), fields)


def test_a_ratio_that_removes_nothing():
    model = build(sketch_ratio=0.99)
    with pytest.raises(ValueError, match='0.99 of 24 tokens keeps 24 dim'):
        model.loss(torch.zeros(2, 3, 16, 24))


def test_field_of_another_length():
    fields = samples(*given(length=23))
    with pytest.raises(ValueError, match=r'`sketch_hash`.*\(23,\).*\(24,\)'):
        build().loss(torch.zeros(2, 3, 16, 24), fields)


def test_ratio_outside_its_range():
    with pytest.raises(ValueError, match='sketch_ratio is 1.2'):
        build(sketch_ratio=1.2)


def test_images_not_a_multiple_of_the_patch():
    with pytest.raises(ValueError, match='image size 18x24 .* 4x4'):
        build().loss(torch.zeros(2, 3, 18, 24))


@pytest.mark.gpu
def test_cuda_equals_cpu():
    model = build()
    x = torch.randn(2, 3, 16, 24)
    fields = samples(*given())
    expected = model.loss(x, fields)['loss']
    moved = [s.to('cuda') for s in fields]
    loss = model.cuda().loss(x.cuda(), moved)['loss']
    torch.testing.assert_close(loss.cpu(), expected, rtol=1e-4, atol=1e-5)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
