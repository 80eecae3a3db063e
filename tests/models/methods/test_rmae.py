"""R-MAE against its equations, written out, and against MMPretrain's MAE."""

import pytest
import torch
from mmpretrain.models import VisionTransformer
from mmpretrain.models.utils import resize_pos_embed
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch.nn import functional as F

from ropim_mm.models import RMAEViT
from ropim_mm.models.layers import patchify
from ropim_mm.models.layers.positions import sincos_positions
from ropim_mm.models.layers.tokens import random_permutations

ARCH = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
SIZE = (8, 12)  # 2 x 3 patches of 4
REGIONS = 3


def build(size=SIZE, patch=4, channels=3, pixels=True, **kwargs):
    torch.manual_seed(0)
    sizes = dict(img_size=size, patch_size=patch)
    branch = dict(
        type='ropim_mm.RMAERegionBranch',
        embed_dims=16,
        enc_dims=8,
        enc_heads=2,
        dec_dims=12,
        dec_heads=3,
        cross_layers=2,
        **sizes,
    )
    branch.update(kwargs.pop('branch', {}))
    if pixels:
        kwargs.setdefault(
            'neck',
            dict(
                type='ropim_mm.RMAENeck',
                embed_dims=16,
                out_channels=channels,
                decoder_dims=8,
                decoder_depth=2,
                decoder_heads=2,
                **sizes,
            ),
        )
        kwargs.setdefault(
            'head', dict(type='ropim_mm.RMAEHead', patch_size=patch)
        )
    model = MODELS.build(
        dict(
            type='ropim_mm.RMAE',
            backbone=dict(
                type='ropim_mm.RMAEViT',
                arch=ARCH,
                in_channels=channels,
                out_type='raw',
                **sizes,
            ),
            region_branch=branch,
            **dict(
                dict(
                    num_regions=REGIONS, mask_ratio=0.5, region_mask_ratio=0.5
                ),
                **kwargs,
            ),
        )
    )
    model.init_weights()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
    return model


def samples(regions=None, ids=None):
    result = []
    for i in range(len(regions if regions is not None else ids)):
        sample = DataSample()
        if regions is not None:
            sample.set_field(regions[i], 'regions')
        if ids is not None:
            sample.set_field(ids[i], 'shuffle_ids')
        result.append(sample)
    return result


def given(size=SIZE, patch=(4, 4), batch=2, channels=3, count=REGIONS):
    torch.manual_seed(1)
    x = torch.randn(batch, channels, *size)
    # Rectangles, so that patches are full, empty and mixed.
    regions = torch.zeros(batch, count, *size, dtype=torch.bool)
    for b in range(batch):
        for r in range(count):
            top, left = (int(torch.randint(0, s, ())) for s in size)
            regions[b, r, top : top + 5, left : left + 7] = True
    length = (size[0] // patch[0]) * (size[1] // patch[1])
    return x, regions, random_permutations(batch, length)


# --- the equations, in the patches' own order, nothing left out -------------


def norm(layer, x):
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + 1e-6).sqrt() * layer.weight + layer.bias


def attention(q, k, v, heads, proj):
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
    return F.linear(
        (weights @ v).transpose(1, 2).flatten(2), proj.weight, proj.bias
    )


def self_attention(attn, x):
    q, k, v = F.linear(x, attn.qkv.weight, attn.qkv.bias).chunk(3, dim=-1)
    return attention(q, k, v, attn.num_heads, attn.proj)


def mlp(ffn, x):
    first, second = ffn.layers[0][0], ffn.layers[1]
    x = F.gelu(F.linear(x, first.weight, first.bias))
    return F.linear(x, second.weight, second.bias)


def block(b, x):
    x = x + self_attention(b.attn, norm(b.ln1, x))
    return x + mlp(b.ffn, norm(b.ln2, x))


def rows(x, ids):
    return torch.stack([x[i][ids[i]] for i in range(len(ids))])


def encode(model, x, visible):
    encoder = model.backbone
    weight = encoder.patch_embed.projection.weight.flatten(1)
    bias = encoder.patch_embed.projection.bias
    tokens = patchify(x, encoder.patch_size) @ weight.T + bias
    tokens = rows(tokens + encoder.pos_embed[:, 1:], visible)
    first = (encoder.cls_token + encoder.pos_embed[:, :1]).expand(
        len(x), -1, -1
    )
    tokens = torch.cat((first, tokens), 1)
    for layer in encoder.layers:
        tokens = block(layer, tokens)
    return norm(encoder.ln1, tokens)


def fill(decoder, latent, visible, length):
    """(B, 1 + L, D), row-major."""
    latent = decoder.decoder_embed(latent)
    tokens = decoder.mask_token.repeat(len(latent), 1 + length, 1)
    tokens[:, 0] = latent[:, 0]
    for i, kept in enumerate(visible):
        tokens[i, 1 + kept] = latent[i, 1:]
    tokens = tokens + decoder.decoder_pos_embed
    for layer in decoder.decoder_blocks:
        tokens = block(layer, tokens)
    return norm(decoder.ln1, tokens)


def predict_regions(branch, latent, regions, visible, seen, length):
    """Logits (B, R, L, p * p); visible to the regions, seen by the pixels."""
    encoder, count = branch.encoder, regions.shape[1]
    weight = encoder.patch_embed.projection.weight.flatten(1)
    vectors = []
    for r in range(count):
        tokens = (
            patchify(regions[:, r : r + 1].float(), branch.patch_size) - 0.5
        )
        tokens = tokens @ weight.T + encoder.patch_embed.projection.bias
        tokens = rows(tokens + encoder.pos_embed[:, 1:], visible)
        for layer in encoder.layers:
            tokens = block(layer, tokens)
        vectors.append(tokens.mean(1))
    queries = branch.to_query[1](
        norm(branch.to_query[0], torch.stack(vectors, 1))
    )
    memory = fill(branch.memory, latent, seen, length)
    for layer in branch.layers:
        queries = queries + self_attention(
            layer.attn, norm(layer.ln1, queries)
        )
        cross = layer.cross_attn
        k, v = cross.kv(memory).chunk(2, dim=-1)
        queries = queries + attention(
            cross.q(norm(layer.ln2, queries)),
            k,
            v,
            cross.num_heads,
            cross.proj,
        )
        queries = queries + mlp(layer.ffn, norm(layer.ln3, queries))
    last = branch.expansion
    queries = queries + self_attention(last.attn, norm(last.ln1, queries))
    pairs = queries.unsqueeze(2) + last.memory(memory).unsqueeze(1)
    pairs = mlp(last.ffn, norm(last.ln2, pairs))
    return branch.pred(F.gelu(pairs))[:, :, 1:]


@pytest.mark.parametrize(
    ('ratio', 'region_ratio'), [(0.5, 0.5), (0.5, 0.8), (0.8, 0.5)]
)
@pytest.mark.parametrize('dec_depth', [1, 2])
@pytest.mark.parametrize('bg', [1.0, 0.25])
@pytest.mark.parametrize('norm_pix', [True, False])
def test_losses_are_the_equations(
    ratio, region_ratio, dec_depth, bg, norm_pix
):
    model = build(
        mask_ratio=ratio,
        region_mask_ratio=region_ratio,
        pixel_loss_weight=0.3,
        region_loss_weight=0.7,
        branch=dict(dec_depth=dec_depth, bg_loss_weight=bg, enc_depth=2),
        head=dict(type='ropim_mm.RMAEHead', patch_size=4, norm_pix=norm_pix),
    )
    x, regions, ids = given()
    visible, seen = (ids[:, : int(6 * (1 - r))] for r in (region_ratio, ratio))
    latent = encode(model, x, seen)

    pixels = model.neck.decoder_pred(fill(model.neck, latent, seen, 6)[:, 1:])
    target = patchify(x, 4, channels_last=True)
    if norm_pix:
        mean, var = target.mean(-1, True), target.var(-1, keepdim=True)
        target = (target - mean) / (var + 1e-6).sqrt()
    error = (pixels - target).square().mean(-1)
    hidden = torch.ones(2, 6).scatter(1, seen, 0.0)
    loss_pixel = 0.3 * (error * hidden).sum() / hidden.sum()

    logits = predict_regions(
        model.region_branch, latent, regions, visible, seen, 6
    )
    target = patchify(regions.flatten(0, 1).unsqueeze(1), 4).float()
    target = target.unflatten(0, (2, REGIONS))
    cross_entropy = -(
        target * logits.sigmoid().log()
        + bg * (1 - target) * (-logits).sigmoid().log()
    )
    hidden = torch.ones(2, 6).scatter(1, visible, 0.0)
    per_patch = cross_entropy.mean(-1).mean(1)
    loss_region = 0.7 * (per_patch * hidden).sum() / hidden.sum()

    fields = samples(regions, ids)
    losses = model.loss(x, fields)
    assert list(losses) == ['loss_pixel', 'loss_region']
    close = dict(rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses['loss_pixel'], loss_pixel, **close)
    torch.testing.assert_close(losses['loss_region'], loss_region, **close)

    # And the way back, of every parameter.
    params = [p for p in model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(sum(losses.values()), params)
    plain = torch.autograd.grad(loss_pixel + loss_region, params)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)

    whole = model.predict(x, fields)
    torch.testing.assert_close(whole['pixels'], pixels, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole['regions'], logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(whole['region_mask'], hidden.bool())


def test_visible_sets_are_nested():
    model = build(mask_ratio=0.5, region_mask_ratio=0.8)
    x, regions, ids = given()
    whole = model.predict(x, samples(regions, ids))
    mask, region_mask = whole['mask'], whole['region_mask']
    assert (mask.sum(1) == 3).all() and (region_mask.sum(1) == 5).all()
    assert (region_mask | ~mask).all()


@pytest.mark.parametrize(
    ('size', 'patch', 'channels'),
    [((8, 12), 4, 3), ((16, 16), 4, 1), ((8, 20), (2, 4), 5), ((6, 2), 2, 4)],
)
@pytest.mark.parametrize('dec_depth', [1, 2])
def test_any_grid_patch_and_channels(size, patch, channels, dec_depth):
    model = build(size, patch, channels, branch=dict(dec_depth=dec_depth))
    pair = (patch, patch) if isinstance(patch, int) else patch
    x, regions, ids = given(size, pair, 3, channels)
    losses = model.loss(x, samples(regions, ids))
    sum(losses.values()).backward()
    assert all(torch.isfinite(v) and v > 0 for v in losses.values())
    for name, p in model.named_parameters():
        assert (p.grad is not None) is not name.endswith('pos_embed'), name
    whole = model.predict(x, samples(regions, ids))
    image = model.head.to_pixels(whole['pixels'], x)
    assert image.shape == x.shape


def test_predicted_target_gives_the_image():
    model = build()
    x, _, _ = given()
    every = torch.arange(6).expand(2, 6)
    target = model.head.target(x, every)
    torch.testing.assert_close(
        model.head.to_pixels(target, x), x, rtol=1e-4, atol=1e-5
    )


def test_sizes_other_than_configured_resize_positions():
    model = build()
    x, regions, ids = given((12, 16))
    losses = model.loss(x, samples(regions, ids))
    assert all(torch.isfinite(v) for v in losses.values())
    assert model.backbone(x)[0].shape == (2, 13, 16)


@pytest.mark.parametrize('kind', [torch.bool, torch.uint8, torch.float64])
def test_regions_of_any_type(kind):
    model = build()
    x, regions, ids = given()
    expected = model.loss(x, samples(regions.float(), ids))['loss_region']
    loss = model.loss(x, samples(regions.to(kind), ids))['loss_region']
    torch.testing.assert_close(loss, expected)
    assert loss.dtype == torch.float32


def test_soft_regions():
    """Numbers between 0 and 1 are targets, too."""
    model = build(branch=dict(bg_loss_weight=0.5))
    x, regions, ids = given()
    soft = regions * 0.7
    latent = encode(model, x, ids[:, :3])
    logits = predict_regions(
        model.region_branch, latent, soft, ids[:, :3], ids[:, :3], 6
    )
    logits = torch.stack([logits[i][:, ids[i, 3:]] for i in range(2)])
    target = patchify(soft.flatten(0, 1).unsqueeze(1), 4)
    target = target.unflatten(0, (2, REGIONS))
    target = torch.stack([target[i][:, ids[i, 3:]] for i in range(2)])
    each = F.binary_cross_entropy_with_logits(logits, target, reduction='none')
    expected = torch.where(target == 0, 0.5 * each, each).mean()
    loss = model.loss(x, samples(soft, ids))['loss_region']
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


# --- pixels alone, regions alone --------------------------------------------


def test_without_regions_it_is_mmpretrains_mae(monkeypatch):
    model = build(
        size=(16, 16), num_regions=0, mask_ratio=0.75, region_mask_ratio=0.75
    )
    assert model.region_branch is None
    mae = MODELS.build(
        dict(
            type='mmpretrain.MAE',
            backbone=dict(
                type='MAEViT', arch=ARCH, img_size=16, patch_size=4,
                mask_ratio=0.75,
            ),
            neck=dict(
                type='MAEPretrainDecoder', num_patches=16, patch_size=4,
                embed_dim=16, decoder_embed_dim=8, decoder_depth=2,
                decoder_num_heads=2,
            ),
            head=dict(
                type='MAEPretrainHead', norm_pix=True, patch_size=4,
                loss=dict(type='PixelReconstructionLoss', criterion='L2'),
            ),
        )
    )  # fmt: skip
    mae.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(3, 3, 16, 16)
    torch.manual_seed(7)
    expected = mae.loss(x, None)['loss']
    expected.backward()
    torch.manual_seed(7)
    losses = model.loss(x)
    assert losses['loss_region'] == 0
    torch.testing.assert_close(losses['loss_pixel'], expected)
    sum(losses.values()).backward()
    theirs = dict(mae.named_parameters())
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(
                p.grad, theirs[name].grad, rtol=1e-4, atol=1e-6
            )


def test_without_regions_none_are_read():
    model = build(num_regions=0)
    x, regions, ids = given()
    expected = model.loss(x, samples(ids=ids))
    given_anyway = model.loss(x, samples(regions[:, :1], ids))
    assert given_anyway == expected
    assert set(model.predict(x)) == {'mask', 'region_mask', 'pixels'}


def test_regions_alone():
    model = build(pixels=False)
    x, regions, ids = given()
    fields = samples(regions, ids)
    losses = model.loss(x, fields)
    assert losses['loss_pixel'] == 0 and losses['loss_region'] > 0
    sum(losses.values()).backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None) is not name.endswith('pos_embed'), name
    both = build()
    for name, tensor in model.state_dict().items():
        both.state_dict()[name].copy_(tensor)
    torch.testing.assert_close(
        both.loss(x, fields)['loss_region'], losses['loss_region']
    )
    assert 'pixels' not in model.predict(x, fields)


# --- draws, types, neighbours -----------------------------------------------


def test_same_fields_give_the_same_numbers():
    model = build()
    x, regions, ids = given()
    torch.manual_seed(5)
    first = model.loss(x, samples(regions, ids))
    torch.manual_seed(6)
    assert model.loss(x, samples(regions, ids)) == first
    drawn = [model.loss(x, samples(regions)) for _ in range(2)]
    assert drawn[0] != drawn[1]


def test_losses_are_float32_under_autocast():
    model = build()
    x, regions, ids = given(batch=8)
    fields = samples(regions, ids)
    exact = model.loss(x, fields)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model.loss(x, fields)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], rtol=0.02, atol=0)
    sum(losses.values()).backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad.dtype == torch.float32, name


def test_training_lowers_both_losses():
    model = build(size=(16, 16))
    x, regions, _ = given((16, 16), batch=16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(0)
    history = []
    for _ in range(60):
        losses = model.loss(x, samples(regions))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append([v.item() for v in losses.values()])
    start, end = (torch.tensor(h).mean(0) for h in (history[:5], history[-5:]))
    assert (end < torch.tensor([0.97, 0.7]) * start).all()


def test_checkpoint_is_also_mmpretrains():
    model = build(size=(8, 8))
    peer = VisionTransformer(arch=ARCH, img_size=8, patch_size=4)
    result = peer.load_state_dict(model.backbone.state_dict())
    assert not result.missing_keys and not result.unexpected_keys
    x = torch.randn(2, 3, 8, 8)
    model.eval()
    peer.eval()
    (ours,), (theirs,) = model.backbone(x), peer(x)
    torch.testing.assert_close(ours[:, 0], theirs, rtol=1e-4, atol=1e-5)


def test_encoder_is_an_ordinary_backbone():
    encoder = RMAEViT(
        arch=ARCH, img_size=8, patch_size=4, out_type='featmap',
        out_indices=(0, 1), learn_positions=True,
    )  # fmt: skip
    encoder.init_weights()
    assert encoder.pos_embed.requires_grad
    outs = encoder(torch.randn(2, 3, 12, 20))
    assert [o.shape for o in outs] == [(2, 16, 3, 5)] * 2
    assert not RMAEViT(
        arch=ARCH, img_size=8, patch_size=4
    ).pos_embed.requires_grad
    assert RMAEViT.arch_zoo['huge'] == (1280, 32, 16, 5120)


def test_initial_weights():
    encoder = RMAEViT(arch=ARCH, img_size=(16, 8), patch_size=4)
    encoder.init_weights()
    bound = (6 / (16 + 48)) ** 0.5
    weight = encoder.patch_embed.projection.weight
    assert 0.9 * bound < weight.abs().max() <= bound
    assert encoder.patch_embed.projection.bias.any()  # PyTorch's own
    assert not encoder.layers[0].attn.qkv.bias.any()
    assert encoder.cls_token.std() < 0.1


def test_forward_modes_of_mmpretrain():
    model = build()
    x, regions, ids = given()
    assert model(x, mode='tensor')[0].shape == (2, 7, 16)
    assert 'loss_region' in model(x, samples(regions, ids), mode='loss')


@pytest.mark.slow
def test_one_graph_under_compile():
    """No custom function and no wait for the device in the way."""
    model = build()
    x, regions, ids = given()
    fields = samples(regions, ids)
    explained = torch._dynamo.explain(model.loss)(x, fields)
    assert explained.graph_break_count == 0, explained.break_reasons


# --- bad input --------------------------------------------------------------


def test_samples_without_regions():
    x, regions, ids = given()
    with pytest.raises(
        ValueError,
        match=r'of 2 data samples 0 carry `regions`; expected .* \(3, 8, 12\)',
    ):
        build().loss(x, samples(ids=ids))
    some = samples(regions, ids)
    some[1].pop('regions')
    with pytest.raises(ValueError, match='of 2 data samples 1 carry'):
        build().loss(x, some)


@pytest.mark.parametrize(
    'shape', [(2, 8, 12), (3, 8, 8), (4, 8, 12), (3, 12, 8)]
)
def test_regions_of_another_shape(shape):
    x, _, ids = given()
    regions = torch.zeros(2, *shape, dtype=torch.bool)
    with pytest.raises(ValueError, match='`regions` has shapes') as caught:
        build().loss(x, samples(regions, ids))
    assert str(list(shape))[1:-1] in str(caught.value)
    assert '(3, 8, 12)' in str(caught.value)


def test_permutation_on_some_samples_only():
    x, regions, ids = given()
    fields = samples(regions, ids)
    fields[0].pop('shuffle_ids')
    with pytest.raises(ValueError, match='of 2 data samples 1 carry `shuffle'):
        build().loss(x, fields)


def test_permutation_of_another_length():
    x, regions, ids = given()
    with pytest.raises(ValueError, match=r'`shuffle_ids`.*\(5,\).*\(6,\)'):
        build().loss(x, samples(regions, ids[:, :5]))


@pytest.mark.parametrize('name', ['mask_ratio', 'region_mask_ratio'])
@pytest.mark.parametrize('ratio', [0.0, 1.0, -0.5])
def test_ratio_outside_its_range(name, ratio):
    with pytest.raises(ValueError, match=f'^{name} is {ratio}'):
        build(**{name: ratio})


def test_ratio_that_shows_nothing():
    x, regions, ids = given()
    with pytest.raises(ValueError, match='region_mask_ratio 0.9 of 6 patches'):
        build(region_mask_ratio=0.9).loss(x, samples(regions, ids))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(num_regions=-1), 'num_regions is -1'),
        (dict(head=None), 'expected both'),
        (dict(region_branch=None), 'region_branch is None'),
        (dict(neck=None, head=None, num_regions=0), 'nothing to learn from'),
        (
            dict(backbone=dict(out_type='featmap')),
            "'out_type': 'featmap'.* needs .*'out_type': 'raw'",
        ),
        (dict(backbone=dict(final_norm=False)), "'final_norm': False"),
        (dict(backbone=dict(out_indices=0)), r"'out_indices': \(0,\)"),
        (
            dict(region_branch=dict(patch_size=2)),
            r"'region_branch': \(2, 2\)}; expected the same for all",
        ),
        (
            dict(neck=dict(patch_size=2)),
            'neck predicts 12 values a patch; .* have 48',
        ),
        (dict(neck=dict(decoder_depth=0)), 'decoder of depth 0'),
        (dict(region_branch=dict(cross_layers=0)), 'decoder of depth 0'),
    ],
)
def test_contradictory_arguments(change, message):
    config = dict(
        type='ropim_mm.RMAE',
        backbone=dict(
            type='ropim_mm.RMAEViT', arch=ARCH, img_size=8, patch_size=4,
            out_type='raw',
        ),
        neck=dict(
            type='ropim_mm.RMAENeck', embed_dims=16, img_size=8, patch_size=4,
            decoder_dims=8, decoder_heads=2,
        ),
        head=dict(type='ropim_mm.RMAEHead', patch_size=4),
        region_branch=dict(
            type='ropim_mm.RMAERegionBranch', embed_dims=16, img_size=8,
            patch_size=4, enc_dims=8, enc_heads=2, dec_dims=8, dec_heads=2,
        ),
    )  # fmt: skip
    for key, value in change.items():
        if isinstance(value, dict):
            config[key].update(value)
        else:
            config[key] = value
    with pytest.raises(ValueError, match=message):
        MODELS.build(config)


def test_permutations_are_checked():
    x, regions, ids = given()
    ids[1, 0] = ids[1, 1]
    with pytest.raises(ValueError, match='no permutation .* 0 to 5 once'):
        build().loss(x, samples(regions, ids))


def test_inputs_in_a_list():
    with pytest.raises(ValueError, match='are a list of 1; expected one'):
        build().loss([torch.zeros(2, 3, 8, 12)])


def test_weights_of_another_size():
    """Fixed tables are a formula: each model keeps its own."""
    small, large = build(), build(size=(16, 24))
    large.load_state_dict(small.state_dict())
    for name, value in large.state_dict().items():
        if 'pos_embed' in name:
            table = sincos_positions((4, 6), value.shape[-1])
            assert torch.equal(value, table), name
        else:
            assert torch.equal(value, small.state_dict()[name]), name


@pytest.mark.parametrize('learn', [True, False])
def test_positions_of_a_grid_with_as_many_tokens(learn):
    wide = RMAEViT(arch=ARCH, img_size=(8, 32), patch_size=4)
    square = RMAEViT(
        arch=ARCH, img_size=16, patch_size=4, learn_positions=learn
    )
    square.load_state_dict(wide.state_dict())
    formula = sincos_positions((4, 4), 16)
    if not learn:
        assert torch.equal(square.pos_embed, formula)
        return
    resized = resize_pos_embed(wide.pos_embed, (2, 8), (4, 4), 'bicubic', 1)
    assert torch.equal(square.pos_embed, resized)
    # Trained ones are taken as they are.
    with torch.no_grad():
        square.pos_embed.normal_()
    again = RMAEViT(arch=ARCH, img_size=16, patch_size=4)
    again.load_state_dict(square.state_dict())
    assert torch.equal(again.pos_embed, square.pos_embed)


def test_double_precision():
    model = build()
    x, regions, ids = given()
    losses = model.loss(x, samples(regions, ids))
    wide = model.double().loss(x.double(), samples(regions, ids))
    for name, loss in losses.items():
        torch.testing.assert_close(wide[name].float(), loss)


def test_no_query_block():
    with pytest.raises(ValueError, match='dec_depth is 0'):
        build(branch=dict(dec_depth=0))


def test_images_not_a_multiple_of_the_patch():
    with pytest.raises(ValueError, match='image size 10x12 .* 4x4'):
        build().loss(torch.zeros(2, 3, 10, 12))


def test_images_with_other_channels():
    x, regions, ids = given(channels=4)
    with pytest.raises(ValueError, match=r'\(2, 4, 8, 12\).*`in_channels`'):
        build().loss(x, samples(regions, ids))


@pytest.mark.gpu
def test_cuda_equals_cpu():
    model = build()
    x, regions, ids = given()
    fields = samples(regions, ids)
    expected = model.loss(x, fields)
    losses = model.cuda().loss(x.cuda(), [s.to('cuda') for s in fields])
    for name, loss in losses.items():
        torch.testing.assert_close(
            loss.cpu(), expected[name], rtol=1e-4, atol=1e-5
        )
    sum(losses.values()).backward()
    assert all(
        p.grad is not None for p in model.parameters() if p.requires_grad
    )
