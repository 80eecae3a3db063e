import math

import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.models import BEiTViT
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch.nn import functional as F

from ropim_mm.engine import LayerDecayOptimWrapperConstructor
from ropim_mm.errors import InputError
from ropim_mm.models import ConMIM, ConMIMHead, ConMIMNeck, ConMIMViT
from ropim_mm.models.methods import conmim

ARCH = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
PRETRAIN = dict(
    out_type='raw',
    final_norm=True,
    use_rel_pos_bias=False,
    use_shared_rel_pos_bias=True,
)


def build(size=(16, 24), patch=4, channels=3, backbone=(), **kwargs):
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='ropim_mm.ConMIM',
            backbone=dict(
                type='ropim_mm.ConMIMViT',
                arch=ARCH,
                img_size=size,
                patch_size=patch,
                in_channels=channels,
                with_mask_token=True,
                init_cutoff=0.02,
                **PRETRAIN,
                **dict(backbone),
            ),
            neck=dict(
                type='ropim_mm.ConMIMNeck',
                in_channels=16,
                hid_channels=32,
                out_channels=8,
            ),
            head=dict(type='ropim_mm.ConMIMHead'),
            **kwargs,
        )
    )
    model.init_weights()
    return model.train()


def stir(model, std=0.1):
    """Nothing at its initial value, student and copy different."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=std)
    return model


def views(batch=2, channels=3, size=(16, 24)):
    torch.manual_seed(1)
    return [torch.randn(batch, channels, *size) for _ in 'ab']


def samples(masks):
    return [DataSample().set_mask(mask) for mask in masks]


def masks(batch=2, grid=(4, 6)):
    torch.manual_seed(2)
    shares = torch.linspace(0.4, 0.8, batch)[:, None, None]
    return torch.rand(batch, *grid) < shares


def written_out(model, inputs, mask, temperature=0.1):
    """The loss from its definition, one masked position at a time."""
    student, copy = model.backbone, model.momentum
    hidden = mask.flatten(1).unsqueeze(-1)
    (tokens,) = student(
        inputs[0],
        lambda t: t * ~hidden + student.mask_token * hidden,
    )
    shape = tokens.shape[:2]
    f = model.neck(tokens)
    g = copy.neck(copy.backbone(inputs[1])[0])
    assert f.shape == (*shape, 8)
    losses = []
    for b in range(len(mask)):
        for i in mask[b].flatten().nonzero().flatten().tolist():
            logits = torch.stack(
                [
                    F.cosine_similarity(f[b, 1 + i], g[b, 1 + j], dim=0)
                    for j in range(shape[1] - 1)
                ]
            )
            losses.append(
                F.cross_entropy(logits / temperature, torch.tensor(i))
            )
    return torch.stack(losses).mean()


@pytest.mark.parametrize('temperature', [0.1, 0.01])
def test_loss_and_gradients_are_the_equation(temperature):
    model = stir(build())
    model.head.temperature = temperature
    inputs, mask = views(), masks()
    assert mask[0].sum() != mask[1].sum()
    expected = written_out(model, inputs, mask, temperature)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(expected, list(trained.values()))
    loss = model.loss(inputs, samples(mask))
    assert list(loss) == ['loss']
    torch.testing.assert_close(loss['loss'], expected, rtol=1e-5, atol=1e-6)
    loss['loss'].backward()
    # That of ln1.bias is 0 but for rounding: a BatchNorm takes means away.
    largest = max(grad.abs().max().item() for grad in grads)
    for (name, p), grad in zip(trained.items(), grads, strict=True):
        assert (p.grad - grad).abs().max() < 1e-5 * largest, name


def test_head_is_the_cross_entropy_of_masked_rows():
    torch.manual_seed(0)
    x, y = torch.randn(3, 6, 4, requires_grad=True), torch.randn(3, 6, 4)
    mask = torch.rand(3, 6) < 0.5
    expected = F.cross_entropy(
        (F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).mT / 0.2)[mask],
        mask.nonzero()[:, 1],
    )
    (grad,) = torch.autograd.grad(3 * expected, x)
    loss = ConMIMHead(0.2).loss(x, y, mask)
    torch.testing.assert_close(loss, expected)
    (3 * loss).backward()
    torch.testing.assert_close(x.grad, grad, rtol=1e-4, atol=1e-7)


def test_no_more_than_one_tensor_of_all_pairs_is_alive():
    """Forward and backward of the loss, by the sizes of what they allocate."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.storages = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(t, torch.Tensor) and t.shape == (2, 50, 50):
                    self.storages.add(t.untyped_storage().data_ptr())
                    self.kept.append(t)
            return out

        kept = []  # a freed address could be given out again

    x = torch.randn(2, 50, 4, requires_grad=True)
    mask = torch.rand(2, 50) < 0.7
    with Largest() as seen:
        loss = ConMIMHead().loss(x, torch.randn(2, 50, 4), mask)
        loss.backward()
    assert len(seen.storages) == 1


def test_similar_features_of_other_positions_cost():
    head, eye = ConMIMHead(), torch.eye(6)[None]
    mask = torch.ones(1, 6, dtype=torch.bool)
    right = head.loss(eye, eye, mask)
    torch.testing.assert_close(
        right, torch.log(1 + 5 * torch.exp(torch.tensor(-10.0)))
    )
    assert head.loss(eye, eye.roll(1, 1), mask) > 9
    same = torch.ones(1, 6, 3)
    torch.testing.assert_close(
        head.loss(same, same, mask), torch.tensor(6.0).log()
    )


def test_visible_positions_are_keys_only():
    head = ConMIMHead()
    torch.manual_seed(0)
    x, y = torch.randn(2, 8, 4), torch.randn(2, 8, 4)
    mask = torch.rand(2, 8) < 0.5
    loss = head.loss(x, y, mask)
    changed = torch.where(mask.unsqueeze(-1), x, x + 1)
    assert torch.equal(head.loss(changed, y, mask), loss)
    assert not torch.equal(head.loss(x, torch.where(
        mask.unsqueeze(-1), y, y + 1), mask), loss)  # fmt: skip


def test_a_batch_without_masks_is_no_nan():
    loss = ConMIMHead().loss(
        torch.ones(1, 4, 2), torch.ones(1, 4, 2), torch.zeros(1, 4).bool()
    )
    assert loss == 0


def test_projector_is_three_layers_with_batch_norms():
    neck = stir(ConMIMNeck(4, 6, 3))
    tokens = torch.randn(5, 7, 4)
    x = tokens.flatten(0, 1)

    def norm(x, bn):
        x = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
        return x if bn.weight is None else x * bn.weight + bn.bias

    x = norm(x @ neck.fc0.weight.T, neck.bn0).relu()
    x = norm(x @ neck.fc1.weight.T, neck.bn1).relu()
    x = norm(x @ neck.fc2.weight.T, neck.bn2)
    torch.testing.assert_close(
        neck(tokens), x.view(5, 7, 3), rtol=1e-4, atol=1e-5
    )
    assert neck.bn2.weight is None and neck.fc0.bias is None


@pytest.mark.parametrize(
    ('size', 'patch', 'channels', 'cell'),
    [
        ((16, 24), 4, 3, 2),
        ((12, 12), 4, 1, 2),
        ((8, 20), (2, 4), 5, 3),
        ((6, 4), 2, 4, 1),
    ],
)
def test_any_grid_patch_and_channels(size, patch, channels, cell):
    model = build(size, patch, channels, mask_cell_size=cell)
    loss = model.loss(views(3, channels, size))['loss']
    loss.backward()
    assert torch.isfinite(loss)
    for name, p in model.named_parameters():
        assert (p.grad is not None) is (not name.startswith('momentum.'))


def test_another_size_than_the_tables():
    model = build()
    assert torch.isfinite(model.loss(views(size=(24, 16)))['loss'])


def test_same_fields_give_the_same_numbers():
    model, inputs, fields = build(), views(), samples(masks())
    torch.manual_seed(5)
    first = model.loss(inputs, fields)['loss']
    torch.manual_seed(6)
    assert torch.equal(model.loss(inputs, fields)['loss'], first)
    assert not torch.equal(
        model.loss(inputs)['loss'], model.loss(inputs)['loss']
    )


def test_samples_without_masks_are_drawn():
    model, inputs = build(), views()
    torch.manual_seed(5)
    drawn = model.loss(inputs, [DataSample(), DataSample()])['loss']
    torch.manual_seed(5)
    assert torch.equal(model.loss(inputs, None)['loss'], drawn)
    mask = model.mask(inputs[0], None)
    # 5 of 6 cells of 2 x 2.
    assert mask.shape == (2, 4, 6) and mask.flatten(1).sum(1).eq(20).all()


def test_the_student_does_not_see_masked_patches():
    model, inputs, mask = build(), views(), masks()
    loss = model.loss(inputs, samples(mask))['loss']
    pixels = mask.repeat_interleave(4, 1).repeat_interleave(4, 2)
    changed = torch.where(pixels.unsqueeze(1), inputs[0] + 7, inputs[0])
    other = model.loss([changed, inputs[1]], samples(mask))['loss']
    torch.testing.assert_close(other, loss)
    seen = torch.where(pixels.unsqueeze(1), inputs[0], inputs[0] + 7)
    other = model.loss([seen, inputs[1]], samples(mask))['loss']
    assert abs(other - loss) > 1e-4


def test_loss_is_float32_under_autocast():
    model, inputs, fields = build(), views(4), samples(masks(4))
    exact = model.loss(inputs, fields)['loss']
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = model.loss(inputs, fields)['loss']
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0)
    loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is None or p.grad.dtype == torch.float32, name


def test_copy_runs_in_the_same_type_without_gradients():
    model = build()
    seen = {}
    model.neck.register_forward_hook(
        lambda _, args, out: seen.update(student=(args[0], out))
    )
    model.momentum.neck.register_forward_hook(
        lambda _, args, out: seen.update(copy=(args[0], out))
    )
    with torch.autocast('cpu', dtype=torch.bfloat16):
        model.loss(views())
    for ours, theirs in zip(seen['student'], seen['copy'], strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.requires_grad and not theirs.requires_grad


def test_copy_starts_equal_and_follows():
    model = build()
    for part in ('backbone', 'neck'):
        own = getattr(model.momentum, part).state_dict()
        for key, value in getattr(model, part).state_dict().items():
            assert torch.equal(own[key], value), key
    trained = [p for p in model.parameters() if p.requires_grad]
    model.loss(views())['loss'].backward()
    torch.optim.SGD(trained, lr=0.5).step()
    old = model.momentum.backbone.mask_token.clone()
    model.update_momentum_copy(0.9)
    torch.testing.assert_close(
        model.momentum.backbone.mask_token,
        0.9 * old + 0.1 * model.backbone.mask_token.detach(),
    )


def test_buffers_of_the_copy_move_by_its_own_forward():
    model = stir(build())
    inputs = views()
    seen = {}
    model.momentum.neck.bn0.register_forward_pre_hook(
        lambda _, args: seen.update(rows=args[0].clone())
    )
    model.loss(inputs)
    copy = model.momentum.neck.bn0
    assert copy.num_batches_tracked == 1
    # Of all tokens, the class tokens included.
    assert len(seen['rows']) == 2 * 25
    torch.testing.assert_close(copy.running_mean, 0.1 * seen['rows'].mean(0))
    assert not torch.allclose(copy.running_mean, model.neck.bn0.running_mean)
    moved = copy.running_mean.clone()
    model.update_momentum_copy(0.5)
    assert torch.equal(copy.running_mean, moved)


def test_optimizer_gets_the_student_alone():
    model = build()
    groups = LayerDecayOptimWrapperConstructor(
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
        )
    ).param_groups(model)
    names = {n: g['weight_decay'] for g in groups for n in g['param_names']}
    assert not [n for n in names if n.startswith('momentum.')]
    assert set(names) == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    decayed = (
        'backbone.mask_token',
        'backbone.rel_pos_bias.relative_position_bias_table',
        'neck.fc0.weight',
    )
    assert {names[n] for n in decayed} == {0.05}
    plain = ('backbone.cls_token', 'neck.bn0.weight', 'backbone.ln1.bias')
    assert {names[n] for n in plain} == {0.0}


def test_mask_token_has_the_depth_of_embeddings():
    model = build()
    depth = model.backbone.get_layer_depth('backbone.mask_token', 'backbone.')
    assert depth == (0, 4)


def test_training_lowers_the_loss_below_chance():
    model = build(size=(16, 16))
    torch.manual_seed(1)
    x = F.interpolate(torch.randn(16, 3, 4, 4), size=16, mode='bicubic')
    fields = samples(masks(16, (4, 4)))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(240):
        loss = model.loss([x, x], fields)['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.update_momentum_copy(0.996)
        losses.append(loss.item())
    chance = math.log(16)
    assert losses[0] > chance
    assert sum(losses[-10:]) / 10 < 0.95 * chance


@pytest.mark.parametrize('update', [False, True])
def test_a_forgotten_copy_stops_the_training(monkeypatch, update):
    monkeypatch.setattr(conmim, 'PATIENCE', 3)
    model, inputs = build(), views()
    for _ in range(3):
        model.loss(inputs)
    if update:
        model.update_momentum_copy(0.9)
        model.loss(inputs)
        return
    with torch.no_grad():
        model.loss(inputs)  # nobody trains
    with pytest.raises(ValueError, match='ropim_mm.MomentumCopyHook'):
        model.loss(inputs)


@pytest.mark.parametrize('prefix', ['backbone.', 'momentum.backbone.'])
def test_checkpoint_is_also_mmpretrains(prefix):
    model = stir(build())
    peer = BEiTViT(arch=ARCH, img_size=(16, 24), patch_size=4, **PRETRAIN)
    state = {
        k.removeprefix(prefix): v
        for k, v in model.state_dict().items()
        if k.startswith(prefix)
    }
    result = peer.load_state_dict(state, strict=False)
    assert not result.missing_keys
    assert result.unexpected_keys == ['mask_token']
    encoder = model.get_submodule(prefix.rstrip('.'))
    x = views()[0]
    with torch.no_grad():
        torch.testing.assert_close(
            peer(x)[0], encoder(x)[0], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize('prefix', ['backbone.', 'momentum.backbone.'])
def test_checkpoint_fine_tunes(prefix, tmp_path):
    model = stir(build())
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'epoch.pth')
    encoder = ConMIMViT(
        arch=ARCH,
        img_size=(24, 24),
        patch_size=4,
        init_cfg=dict(
            type='Pretrained',
            checkpoint=str(tmp_path / 'epoch.pth'),
            prefix=prefix,
        ),
    )
    encoder.init_weights()
    assert encoder.mask_token is None
    source = model.get_submodule(prefix.rstrip('.'))
    assert torch.equal(
        encoder.layers[1].ffn.layers[1].weight,
        source.layers[1].ffn.layers[1].weight,
    )
    assert not torch.equal(
        model.backbone.cls_token, model.momentum.backbone.cls_token
    )
    assert torch.equal(encoder.cls_token, source.cls_token)


def test_an_ordinary_backbone_without_masks():
    encoder = ConMIMViT(
        arch=ARCH,
        img_size=16,
        patch_size=4,
        out_type='featmap',
        out_indices=(0, 1),
    )
    outs = encoder(torch.randn(2, 3, 24, 16))
    assert [o.shape for o in outs] == [(2, 16, 6, 4)] * 2


@pytest.mark.parametrize('scope', ['mmengine', 'mmseg', 'mmpretrain'])
def test_builds_under_any_default_scope(scope):
    with DefaultScope.overwrite_default_scope(scope):
        model = build(data_preprocessor=dict(mean=[0.0] * 3, std=[2.0] * 3))
    assert model.data_preprocessor.std.flatten().tolist() == [2.0] * 3


def test_forward_modes_of_mmpretrain():
    model, inputs = build(), views()
    assert model(inputs, mode='tensor')[0].shape == (2, 25, 16)
    assert model(inputs[0], mode='tensor')[0].shape == (2, 25, 16)
    assert 'loss' in model(inputs, [DataSample(), DataSample()], mode='loss')


def test_backbone_without_mask_token():
    with pytest.raises(
        ValueError,
        match=r"model.backbone, a ConMIMViT of 2 blocks, .*'with_mask_token': "
        r"False}; ConMIM needs .*'with_mask_token': True",
    ):
        ConMIM(
            backbone=dict(type='ropim_mm.ConMIMViT', arch=ARCH, **PRETRAIN),
            neck=dict(type='ropim_mm.ConMIMNeck', in_channels=16),
            head=dict(type='ropim_mm.ConMIMHead'),
        )


@pytest.mark.parametrize(
    ('change', 'found', 'wanted'),
    [
        (dict(out_type='avg_featmap'), "'out_type': 'avg_fe", ": 'raw'"),
        (dict(final_norm=False), "'final_norm': False", "'final_norm': True"),
        (dict(out_indices=(0, 1)), r"indices': \(0, 1\)", r"': \(1,\)"),
        (dict(out_indices=0), r"indices': \(0,\)", r"': \(1,\)"),
    ],
)
def test_a_backbone_for_another_purpose(change, found, wanted):
    with pytest.raises(
        InputError, match=f'{found}.*; ConMIM needs .*{wanted}'
    ):
        ConMIM(
            backbone=dict(type='ropim_mm.ConMIMViT', arch=ARCH)
            | PRETRAIN
            | dict(with_mask_token=True)
            | change,
            neck=dict(type='ropim_mm.ConMIMNeck', in_channels=16),
            head=dict(type='ropim_mm.ConMIMHead'),
        )


@pytest.mark.parametrize('ratio', [0.0, 1.0, 1.5])
def test_ratio_outside_its_range(ratio):
    with pytest.raises(ValueError, match=f'mask_ratio is {ratio}'):
        build(mask_ratio=ratio)


def test_ratio_close_to_one_depends_on_the_images():
    """Not on a grid that nobody has."""
    model = build(mask_ratio=1 - 1e-9)
    with pytest.raises(InputError, match='of 6 cells masks all of them'):
        model.loss(views())


def test_temperature_outside_its_range():
    with pytest.raises(ValueError, match='temperature is 0; expected'):
        ConMIMHead(0)


def test_one_view():
    with pytest.raises(ValueError, match=r'one tensor of shape \(2, 3, 16'):
        build().loss(views()[0])


def test_three_views():
    with pytest.raises(ValueError, match='are 3 views; expected'):
        build().loss([*views(), views()[0]])


def test_views_of_two_sizes():
    weak, strong = views()
    with pytest.raises(ValueError, match='two views have shapes'):
        build().loss([weak, strong[..., :16]])


def test_images_not_a_multiple_of_the_patch():
    with pytest.raises(ValueError, match='image size 18x24 .* 4x4'):
        build().loss(views(size=(18, 24)))


def test_mask_on_some_samples_only():
    fields = [samples(masks())[0], DataSample()]
    with pytest.raises(ValueError, match='of 2 data samples 1 carry `mask`'):
        build().loss(views(), fields)


def test_mask_of_another_grid():
    with pytest.raises(ValueError, match=r'`mask` has shapes \[\(6, 4\)\]'):
        build().loss(views(), samples(masks(grid=(6, 4))))


@pytest.mark.gpu
def test_cuda_equals_cpu():
    model, inputs, fields = build(), views(), samples(masks())
    expected = model.loss(inputs, fields)['loss']
    moved = [s.to('cuda') for s in fields]
    model = model.cuda()
    loss = model.loss([v.cuda() for v in inputs], moved)['loss']
    torch.testing.assert_close(loss.cpu(), expected, rtol=1e-4, atol=1e-5)
    loss.backward()
    model.update_momentum_copy(0.9)
    assert torch.isfinite(model.loss([v.cuda() for v in inputs])['loss'])
