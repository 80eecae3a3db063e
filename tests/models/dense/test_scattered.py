"""Encoders on some tokens of each image, against all tokens and a choice."""

import pytest
import torch

import tiny_models
from ropim_mm.models.dense import scattered
from ropim_mm.models.dense.scattered import (
    Places,
    bias_index,
    bucket_index,
    encode_scattered,
    position_rows,
)
from ropim_mm.models.layers import irpe
from ropim_mm.models.layers.relative_position import relative_position_index

GRID = (3, 5)
LENGTH = 15
# Methods, and BEiT's encoder with a table that all blocks share.
KINDS = (*tiny_models.METHODS, 'shared')
CPU = torch.device('cpu')


def build(kind, img_size=(24, 40), **options):
    """An encoder in float64 whose tables are for ``img_size``."""
    torch.manual_seed(0)
    if kind == 'shared':
        kind = 'conmim'
        options.update(use_rel_pos_bias=False, use_shared_rel_pos_bias=True)
    options = dict(out_type='raw', final_norm=True) | options
    encoder = tiny_models.encoder(kind, img_size=img_size, **options)
    tiny_models.shake(encoder)
    return encoder.double()


def some_ids():
    """7 of 15 tokens of two images, in no order."""
    torch.manual_seed(1)
    return torch.rand(2, LENGTH).argsort(1)[:, :7]


def alone(encoder, tokens, grid, ids):
    """The encoder's blocks on tokens (K, D) of one image, by their indices."""
    rows = torch.cat((torch.zeros(1, dtype=torch.int64), ids + 1))
    x = torch.cat((encoder.cls_token[0], tokens))
    positions = encoder.positions(grid)
    if positions is not None:
        x = x + positions[0, rows]
    x = x[None]
    for layer in encoder.layers:
        attn = layer.attn
        y = layer.ln1(x)
        if isinstance(attn, irpe.IRPEAttention):
            index = attn.rpe_k.index(grid, CPU)[rows][:, rows]
            mixed = attn(y, index)
        elif hasattr(attn, 'has_table'):
            bias = attn.bias if attn.has_table else encoder.rel_pos_bias.bias
            bias = bias(grid)[:, :, rows][..., rows]
            mixed = attn.mix(attn.project(y), bias)
        else:
            mixed = attn(y)
        x = layer.finish(x, mixed)
    return encoder.ln1(x)[0]


def outputs_and_gradients(encoder, tokens, function):
    encoder.zero_grad()
    tokens = tokens.clone().requires_grad_()
    out = function(tokens)
    out.square().sum().backward()
    grads = [p.grad for p in encoder.parameters() if p.grad is not None]
    assert len(grads) > 10
    return [out.detach(), tokens.grad, *(g.clone() for g in grads)]


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_index_of_scattered_tokens():
    ids = some_ids()
    whole = relative_position_index(GRID)
    buckets = irpe.bucket_index(GRID)
    pieces = irpe.ALPHA, irpe.BETA, irpe.GAMMA
    places = Places(GRID, ids)
    for i, each in enumerate(ids):
        rows = torch.cat((torch.zeros(1, dtype=torch.int64), each + 1))
        for index, found in (
            (whole, bias_index(places, 0, 8, CPU)[i]),
            (buckets, bucket_index(places, pieces, 0, 8, CPU)[i]),
        ):
            assert torch.equal(found, index[rows][:, rows])
    # Some queries only; and all tokens, without a list of them.
    part = bias_index(places, 3, 6, CPU)
    assert torch.equal(part, bias_index(places, 0, 8, CPU)[:, 3:6])
    part = bucket_index(places, pieces, 3, 6, CPU)
    assert torch.equal(part, bucket_index(places, pieces, 0, 8, CPU)[:, 3:6])
    assert torch.equal(bias_index(Places(GRID), 0, 16, CPU)[0], whole)
    assert torch.equal(
        bucket_index(Places(GRID), pieces, 0, 16, CPU)[0], buckets
    )


@pytest.mark.parametrize('kind', KINDS)
def test_all_tokens_are_the_whole_image(kind):
    encoder = build(kind)
    encoder.eval()
    images = torch.randn(2, 3, 24, 40, dtype=torch.float64)
    tokens, _ = encoder.patch_embed(images)
    (expected,) = encoder(images)
    out = encode_scattered(encoder, tokens, Places(GRID))
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-11)
    # In another order: the same tokens, in that order.
    order = torch.rand(2, LENGTH).argsort(1)
    places = Places(GRID, order)
    out = encode_scattered(encoder, places.take(tokens), places)
    first, rest = expected[:, :1], places.take(expected[:, 1:])
    torch.testing.assert_close(
        out, torch.cat((first, rest), 1), rtol=1e-9, atol=1e-11
    )


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('rows', [None, 3])
@pytest.mark.parametrize('img_size', [(24, 40), (32, 32)])
def test_some_tokens_are_an_image_of_their_own(
    kind, rows, img_size, monkeypatch
):
    """Values and gradients, in one piece and a few rows at a time, also
    where tables are made for another grid."""
    if rows is not None:
        monkeypatch.setattr(scattered, 'WHOLE', 3)
        monkeypatch.setattr('ropim_mm.models.layers.large_grids.ROWS', rows)
    encoder = build(kind, img_size)
    ids = some_ids()
    tokens = torch.randn(2, 7, tiny_models.WIDTH, dtype=torch.float64)

    def one_by_one(tokens):
        pairs = zip(tokens, ids, strict=True)
        return torch.stack([alone(encoder, t, GRID, i) for t, i in pairs])

    places = Places(GRID, ids)
    assert_same(
        outputs_and_gradients(
            encoder, tokens, lambda t: encode_scattered(encoder, t, places)
        ),
        outputs_and_gradients(encoder, tokens, one_by_one),
    )


def test_the_way_of_masked_pretraining():
    """R-MAE's encoder has one of its own."""
    encoder = build('rmae')
    images = torch.randn(2, 3, 24, 40, dtype=torch.float64)
    ids = some_ids()
    (expected,) = encoder(images, visible=ids)
    places = Places(GRID, ids)
    tokens = places.take(encoder.patch_embed(images)[0])
    out = encode_scattered(encoder, tokens, places)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('whole', [1024, 3])
def test_empty_slots_change_nothing(kind, whole, monkeypatch):
    monkeypatch.setattr(scattered, 'WHOLE', whole)
    encoder = build(kind)
    ids = some_ids()
    tokens = torch.randn(2, 7, tiny_models.WIDTH, dtype=torch.float64)
    alive = torch.arange(7) < torch.tensor([[7], [4]])
    ids[1, 4:] = 0

    def with_slots(tokens):
        out = encode_scattered(encoder, tokens, Places(GRID, ids, alive))
        return torch.cat((out[0], out[1, :5]))

    def without(tokens):
        a = encode_scattered(encoder, tokens[:1], Places(GRID, ids[:1]))
        b = encode_scattered(
            encoder, tokens[1:, :4], Places(GRID, ids[1:, :4])
        )
        return torch.cat((a[0], b[0]))

    ours = outputs_and_gradients(encoder, tokens, with_slots)
    assert_same(ours, outputs_and_gradients(encoder, tokens, without))
    assert not ours[1][1, 4:].any()


@pytest.mark.parametrize('kind', KINDS)
def test_checkpointed_activations(kind):
    tokens = torch.randn(2, 7, tiny_models.WIDTH, dtype=torch.float64)
    places = Places(GRID, some_ids())

    def run(with_cp):
        encoder = build(kind, with_cp=with_cp)
        return outputs_and_gradients(
            encoder, tokens, lambda t: encode_scattered(encoder, t, places)
        )

    assert_same(run(False), run(True))


@pytest.mark.parametrize('kind', KINDS)
def test_bfloat16(kind):
    encoder = build(kind).float()
    tokens = torch.randn(2, 7, tiny_models.WIDTH)
    alive = torch.arange(7) < torch.tensor([[7], [4]])
    places = Places(GRID, some_ids(), alive)
    out = encode_scattered(encoder, tokens, places)
    with torch.autocast('cpu', torch.bfloat16):
        rough = encode_scattered(encoder, tokens, places)
    rough.float().square().sum().backward()
    assert all(
        p.grad.isfinite().all()
        for p in encoder.parameters()
        if p.grad is not None
    )
    error = (rough - out)[0].abs().max() / out[0].abs().max()
    assert error < 0.03


def test_no_table_no_bias():
    encoder = build('conmim', use_rel_pos_bias=False)
    attn = encoder.layers[0].attn
    assert position_rows(attn, Places(GRID), None) is None
    assert position_rows(attn, Places(GRID), torch.zeros(48, 2)) is not None
