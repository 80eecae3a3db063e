import math

import pytest
import torch
from mmpretrain.models import BEiTViT

from ropim_mm.checkpoints import CoverageError, load_weights
from ropim_mm.models import ROPIMViT
from ropim_mm.models.layers import resize_table, vit
from ropim_mm.models.layers.beit import _cut_normal_
from ropim_mm.models.layers.block import add_branch

ARCH = dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32)
PRETRAINING = dict(
    out_type='raw',
    final_norm=True,
    use_rel_pos_bias=False,
    use_shared_rel_pos_bias=True,
)


def build(**kwargs):
    args = dict(arch=ARCH, img_size=(16, 24), patch_size=4) | kwargs
    model = ROPIMViT(**args)
    torch.manual_seed(0)
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.3)
    return model


def theirs(**kwargs):
    args = dict(arch=ARCH, img_size=(16, 24), patch_size=4) | kwargs
    return BEiTViT(**args)


@pytest.mark.parametrize(
    'kwargs',
    [
        PRETRAINING,
        dict(),
        dict(out_type='featmap', out_indices=[0, 2]),
        dict(out_type='cls_token', final_norm=True, use_abs_pos_emb=True),
        dict(layer_scale_init_value=0.0, in_channels=5),
        dict(use_rel_pos_bias=False, out_indices=[-2, -1], out_type='raw'),
    ],
)
def test_equals_mmpretrains_encoder(kwargs):
    ours = build(**kwargs).eval()
    peer = theirs(**kwargs)
    peer.eval()
    assert set(peer.state_dict()) == set(ours.state_dict())
    peer.load_state_dict(ours.state_dict())
    x = torch.randn(2, kwargs.get('in_channels', 3), 16, 24)
    outs, expected = ours(x), peer(x)
    assert len(outs) == len(expected)
    for a, b in zip(outs, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('size', [(16, 24), (8, 8), (40, 4), (24, 16)])
@pytest.mark.parametrize('shared', [True, False])
def test_any_size_at_run_time(size, shared):
    kwargs = dict(
        use_rel_pos_bias=not shared,
        use_shared_rel_pos_bias=shared,
        out_type='featmap',
        use_abs_pos_emb=True,
    )
    model = build(**kwargs).eval()
    grid = (size[0] // 4, size[1] // 4)
    x = torch.randn(1, 3, *size)
    (out,) = model(x)
    assert out.shape == (1, 16, *grid)
    # Loading into a model of that size resizes the same way.
    other = build(**kwargs, img_size=size).eval()
    state = model.state_dict()
    if grid != (4, 6):
        # A file says the grid of absolute positions only if it is square.
        from mmpretrain.models.utils import resize_pos_embed

        state['pos_embed'] = resize_pos_embed(state['pos_embed'], (4, 6), grid)
    result = other.load_state_dict(state)
    assert not result.missing_keys and not result.unexpected_keys
    torch.testing.assert_close(other(x)[0], out, rtol=1e-4, atol=1e-5)


def test_shared_table_is_given_to_every_block_under_any_prefix():
    source = build(**PRETRAINING)
    target = build(img_size=(24, 24))
    table = source.rel_pos_bias.relative_position_bias_table
    expected = resize_table(table.detach(), (4, 6), (6, 6))
    for prefix in ('', 'backbone.'):
        state = {f'{prefix}{k}': v for k, v in source.state_dict().items()}
        before = dict(state)
        adapted = target.adapt_state_dict(state, prefix)
        assert state == before
        for i in range(3):
            name = f'{prefix}layers.{i}.attn.relative_position_bias_table'
            torch.testing.assert_close(adapted[name], expected)
        assert not any('rel_pos_bias' in k for k in adapted)
    result = target.load_state_dict(source.state_dict(), strict=False)
    assert result.missing_keys == ['ln2.weight', 'ln2.bias']
    assert sorted(result.unexpected_keys) == ['ln1.bias', 'ln1.weight']
    table = target.layers[2].attn.relative_position_bias_table
    torch.testing.assert_close(table.detach(), expected)


def test_what_happens_to_the_tokens_is_an_argument():
    model = build(**PRETRAINING).eval()
    x = torch.randn(2, 3, 16, 24)
    assert torch.equal(model(x, lambda t: t)[0], model(x)[0])
    zeroed = model(x, torch.zeros_like)[0]
    assert torch.equal(zeroed[0], zeroed[1])


def test_initial_weights():
    torch.manual_seed(0)
    arch = dict(ARCH, embed_dims=64, feedforward_channels=256)
    model = ROPIMViT(arch=arch, init_cutoff=0.02, img_size=32)
    model.init_weights()
    state = model.state_dict()
    qkv = state['layers.0.attn.qkv.weight']
    assert qkv.abs().max() <= 0.02
    # A normal distribution cut at one std keeps 0.5395 of the std.
    assert qkv.std().item() == pytest.approx(0.02 * 0.5395, rel=0.03)
    for i in range(3):
        for name in ('attn.proj', 'ffn.layers.1'):
            weight = state[f'layers.{i}.{name}.weight']
            expected = 0.02 * 0.5395 / math.sqrt(2 * (i + 1))
            assert weight.std().item() == pytest.approx(expected, rel=0.05)
    for name, value in state.items():
        if name.endswith(('bias', 'bias_table')) and 'ln' not in name:
            assert not value.any(), name
    assert (state['layers.0.gamma_1'] == 0.1).all()
    wide = ROPIMViT(arch=arch, img_size=32)
    wide.init_weights()
    assert wide.state_dict()['patch_embed.projection.weight'].std().item() == (
        pytest.approx(0.02, rel=0.05)
    )


def test_a_second_initialisation_changes_nothing():
    model = ROPIMViT(arch=ARCH, img_size=32)
    model.init_weights()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.init_weights()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_training_at_another_size_is_told_once(monkeypatch):
    told = []
    monkeypatch.setattr(vit, 'print_log', lambda m, **k: told.append(m))
    model = build().train()
    model(torch.randn(1, 3, 16, 24))
    assert not told
    for _ in range(2):
        model(torch.randn(1, 3, 8, 12))
    (message,) = told
    assert 'images of 8x12 and has position tables for 16x24' in message


def test_tables_are_expected_where_positions_would_be_lost():
    source = build(**PRETRAINING)
    target = build(use_rel_pos_bias=False)
    with pytest.raises(CoverageError, match='rel_pos_bias'):
        load_weights(target, source.state_dict(), source='file.pth')


def test_no_initial_weight_lands_on_a_far_cut():
    weight = torch.empty(30_000_000)
    torch.manual_seed(0)
    _cut_normal_(weight, 0.02, 2.0)
    assert weight.abs().max() < 0.2


def test_drop_path_leaves_out_whole_images_and_keeps_the_mean():
    torch.manual_seed(0)
    x, branch = torch.zeros(4000, 2, 3), torch.ones(4000, 2, 3)
    out = add_branch(x, branch, None, 0.25)
    values = out.flatten(1)
    assert (values == values[:, :1]).all()
    torch.testing.assert_close(
        values[:, 0].unique(), torch.tensor([0.0, 4 / 3])
    )
    assert values.mean().item() == pytest.approx(1.0, abs=0.05)
    rates = [b.drop_path_rate for b in build(drop_path_rate=0.1).layers]
    assert rates == pytest.approx([0.0, 0.05, 0.1])
    model = build(drop_path_rate=0.9).eval()
    images = torch.randn(1, 3, 16, 24)
    assert torch.equal(model(images)[0], model(images)[0])


@pytest.mark.parametrize('drop_path', [0.0, 0.5])
def test_layer_scale_multiplies_the_branch(drop_path):
    x, branch, gamma = (torch.randn(s) for s in ((64, 2, 3), (64, 2, 3), 3))
    gamma.requires_grad_()
    torch.manual_seed(0)
    out = add_branch(x, branch, gamma, drop_path)
    torch.manual_seed(0)
    dropped = add_branch(torch.zeros_like(x), branch, None, drop_path)
    torch.testing.assert_close(out, x + gamma * dropped)
    out.sum().backward()
    torch.testing.assert_close(gamma.grad, dropped.sum((0, 1)))


def test_layer_depths():
    model = build()
    depth = model.get_layer_depth
    assert depth('backbone.cls_token', 'backbone.') == (0, 5)
    assert depth('backbone.patch_embed.projection.bias', 'backbone.')[0] == 0
    assert depth('backbone.layers.2.ln1.weight', 'backbone.')[0] == 3
    assert depth('backbone.ln2.weight', 'backbone.')[0] == 4
    assert depth('head.fc.weight', 'backbone.') == (4, 5)


@pytest.mark.parametrize('stages', [-1, 0, 2, 3])
def test_frozen_stages(stages):
    model = build(frozen_stages=stages, drop_path_rate=0.1).train()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert ('cls_token' in trained) == (stages < 0)
    assert any(n.startswith('patch_embed') for n in trained) == (stages < 0)
    for i in range(3):
        expected = i >= stages
        assert (f'layers.{i}.gamma_1' in trained) == expected
        assert model.layers[i].training == expected
    assert ('ln2.weight' in trained) == (stages < 3)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(img_size=50, patch_size=16), 'image size 50x50'),
        (dict(arch='huge'), "arch is 'huge'; expected one of"),
        (dict(arch=dict(embed_dims=8)), "'num_layers'"),
        (dict(arch=dict(ARCH, mlp_ratio=9)), 'exactly the keys'),
        (dict(qkv_bias='qv-bias'), "qkv_bias is 'qv-bias'"),
        (dict(out_indices=[3]), 'out_indices holds 3; .* 3 blocks'),
        (dict(out_type='mean'), "out_type is 'mean'"),
        (dict(use_shared_rel_pos_bias=True), 'exclude each other'),
        (dict(with_cls_token=False), 'needs its class token'),
        (dict(frozen_stages=4), 'frozen_stages is 4; expected -1 to 3'),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


def test_published_sizes():
    # ViT-B/16 of BEiT: 85.8 M with a classifier's pooled norm.
    sizes = dict(tiny=5.5e6, small=21.8e6, base=86.0e6, large=303.8e6)
    for arch, expected in sizes.items():
        with torch.device('meta'):
            model = ROPIMViT(arch=arch)
        count = sum(p.numel() for p in model.parameters())
        assert count == pytest.approx(expected, rel=0.02), arch
