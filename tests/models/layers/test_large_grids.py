"""Attention in windows and in rows, and encoders that use them."""

import pytest
import torch
from torch.nn import functional

import tiny_models
from ropim_mm.errors import InputError
from ropim_mm.models.layers import attention as attentions
from ropim_mm.models.layers import irpe, large_grids
from ropim_mm.models.layers.attention import RelPosAttention, SelfAttention
from ropim_mm.models.layers.irpe import (
    IRPEAttention,
    bucket_index,
    spatial_buckets,
)
from ropim_mm.models.layers.relative_position import resize_table

DIMS, HEADS = 8, 2
KINDS = ('plain', 'table', 'irpe')


def attention(kind, grid=(4, 4)):
    torch.manual_seed(0)
    if kind == 'plain':
        module = SelfAttention(DIMS, HEADS)
    elif kind == 'table':
        module = RelPosAttention(DIMS, HEADS, grid)
    else:
        module = IRPEAttention(DIMS, HEADS)
    tiny_models.shake(module)
    return module.double()


def outputs_and_gradients(module, x, *args):
    module.zero_grad()
    x = x.clone().requires_grad_()
    out = module.on_grid(x, *args)
    out.square().sum().backward()
    return [out, x.grad, *(p.grad for p in module.parameters())]


def fused(q, k, v, mask, dropout):
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout
    )


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_offsets_of_some_queries():
    dy, dx = large_grids.offsets((2, 3), 1, 4, torch.device('cpu'))
    # Queries at (0, 1), (0, 2), (1, 0); keys row by row.
    assert dy.tolist() == [[0] * 3 + [-1] * 3] * 2 + [[1] * 3 + [0] * 3]
    assert dx.tolist() == [
        [1, 0, -1] * 2,
        [2, 1, 0] * 2,
        [0, -1, -2] * 2,
    ]


def test_buckets_of_some_queries():
    whole = bucket_index((5, 7))[1:, 1:]
    assert torch.equal(spatial_buckets((5, 7), 0, 35), whole)
    assert torch.equal(spatial_buckets((5, 7), 9, 23), whole[9:23])


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('grid', [(6, 9), (4, 3), (2, 8)])
def test_windows_are_images_of_their_own(kind, grid):
    window = (4, 4)
    module = attention(kind)
    x = torch.randn(2, *grid, DIMS, dtype=torch.float64)
    expected = torch.empty_like(x)
    for top in range(0, grid[0], 4):
        for left in range(0, grid[1], 4):
            part = x[:, top : top + 4, left : left + 4]
            size = tuple(part.shape[1:3])
            tokens = module.on_grid(part.flatten(1, 2), size, window)
            expected[:, top : top + 4, left : left + 4] = tokens.unflatten(
                1, size
            )
    out = module.on_grid(x.flatten(1, 2), grid, window)
    torch.testing.assert_close(out.unflatten(1, grid), expected)
    calls = []

    def weigh(part, size):
        calls.append(tuple(part.shape[:2]))
        return part[:, :, 0]

    qkv = module.project(x.flatten(1, 2))
    back = large_grids.in_windows(qkv, grid, window, weigh)
    assert torch.equal(back, qkv[:, :, 0])
    assert len(calls) <= 4
    assert sum(n * length for n, length in calls) == 2 * grid[0] * grid[1]


@pytest.mark.parametrize('kind', KINDS)
def test_one_window_is_the_whole_grid(kind):
    module = attention(kind)
    x = torch.randn(2, 16, DIMS, dtype=torch.float64)
    assert_same(
        outputs_and_gradients(module, x, (4, 4), (4, 4)),
        outputs_and_gradients(module, x, (4, 4)),
    )


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('grid', [(4, 4), (5, 7)])
def test_rows_at_a_time(kind, grid, monkeypatch):
    module = attention(kind)
    x = torch.randn(2, grid[0] * grid[1], DIMS, dtype=torch.float64)
    whole = outputs_and_gradients(module, x, grid)
    monkeypatch.setattr(large_grids, 'ROWS', 6)
    for room in ('attention', 'irpe'):
        monkeypatch.setattr(f'ropim_mm.models.layers.{room}.WHOLE', 3)
    assert_same(outputs_and_gradients(module, x, grid), whole)
    # As on a GPU.
    monkeypatch.setattr(large_grids, '_written_out', fused)
    assert_same(outputs_and_gradients(module, x, grid), whole)
    with torch.no_grad():
        torch.testing.assert_close(module.on_grid(x, grid), whole[0])


def test_the_bias_is_that_of_the_table_with_a_class_token():
    module = attention('table', (3, 5))
    x = torch.randn(2, 16, DIMS, dtype=torch.float64)
    qkv = module.project(x)
    whole = module.bias((3, 5))[:, :, 1:, 1:]
    from ropim_mm.models.layers.attention import attend

    expected = attend(qkv[:, 1:], whole)
    ours = module.weigh_grid(qkv[:, 1:], (3, 5), (3, 5))
    torch.testing.assert_close(ours, expected)


def dense(method, **options):
    settings = dict(
        out_type='featmap',
        img_size=64,
        window_size=4,
        global_blocks=(1,),
        final_norm=False,
    )
    return tiny_models.encoder(method, **(settings | options))


@pytest.mark.parametrize('method', tiny_models.METHODS)
def test_encoder_in_windows(method):
    model = dense(method, out_indices=(0, 1))
    tiny_models.shake(model)
    image = torch.randn(1, 3, 64, 96)
    first, last = model(image)
    assert first.shape == last.shape == (1, 16, 8, 12)
    # Block 0 sees its window only, block 1 everything.
    changed = image.clone()
    changed[:, :, :8, :8] += 1.0
    first_changed, last_changed = model(changed)
    same = (first == first_changed).all(1)[0]
    assert not same[:4, :4].any()
    assert same[4:].all() and same[:, 4:].all()
    assert not (last == last_changed).all(1).any()
    (first.sum() + last.sum()).backward()
    without = [
        n
        for n, p in model.named_parameters()
        if p.requires_grad and p.grad is None
    ]
    assert without == []


def gradients(model, with_cp, loss):
    """Of a loss with random branches left out, and calls of the last norm."""
    model.with_cp = with_cp
    calls = []
    hook = model.layers[-1].ln2.register_forward_hook(
        lambda *args: calls.append(1)
    )
    torch.manual_seed(0)
    model.zero_grad()
    loss().backward()
    hook.remove()
    return [p.grad for p in model.parameters()], len(calls)


def assert_checkpointed(model, loss):
    without, once = gradients(model, False, loss)
    recomputed, twice = gradients(model, True, loss)
    assert (once, twice) == (1, 2)
    for a, b in zip(without, recomputed, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize('method', tiny_models.METHODS)
def test_checkpointed_activations_in_windows(method):
    model = dense(method, drop_path_rate=0.5).train()
    image = torch.randn(4, 3, 64, 64)
    assert_checkpointed(model, lambda: model(image)[0].square().sum())


@pytest.mark.parametrize('method', tiny_models.METHODS)
def test_checkpointed_activations_in_pretraining(method):
    model = tiny_models.build(method).train()
    for layer in model.backbone.layers:
        layer.drop_path_rate = 0.5
    batch = tiny_models.batch(model, 4)
    assert_checkpointed(
        model.backbone, lambda: tiny_models.loss_of(model, *batch)
    )


@pytest.mark.parametrize('method', tiny_models.METHODS)
def test_training_after_evaluation_at_the_same_size(method):
    """What is kept for a size was not made for evaluation alone."""
    model = dense(method).train()
    image = torch.randn(1, 3, 72, 80)
    with torch.inference_mode():
        model(image)
    model(image)[0].sum().backward()


@pytest.mark.parametrize('method', ['ropim', 'conmim'])
def test_tables_of_windows_and_of_the_image(method):
    source = tiny_models.build(method).backbone  # 4 x 4 patches, one table
    model = dense(method)
    adapted = model.adapt_state_dict(source.state_dict())
    table = source.rel_pos_bias.relative_position_bias_table
    name = 'layers.{}.attn.relative_position_bias_table'
    assert torch.equal(adapted[name.format(0)], table)  # windows of 4 x 4
    assert adapted[name.format(1)].shape == (15 * 15 + 3, 2)
    assert not any('index' in key for key in adapted)
    left = model.load_state_dict(adapted, strict=False)
    assert left.missing_keys == []
    assert set(left.unexpected_keys) <= {
        'mask_token',
        'ln1.weight',
        'ln1.bias',
    }


def test_tables_of_rectangular_windows_know_their_grid():
    """2x14 has as many offsets as 5x5."""
    source = dense('ropim', window_size=(2, 14), global_blocks=())
    tiny_models.shake(source)
    state = source.state_dict()
    grids = [v for k, v in state.items() if 'position_grid' in k]
    assert [grid.tolist() for grid in grids] == [[2, 14]] * 2
    target = dense('ropim', window_size=4, global_blocks=())
    adapted = target.adapt_state_dict(state)
    name = 'layers.1.attn.relative_position_bias_table'
    expected = resize_table(state[name], (2, 14), (4, 4))
    assert torch.equal(adapted[name], expected)
    again = dense('ropim', window_size=(2, 14), global_blocks=())
    again.load_state_dict(state)
    assert torch.equal(again.state_dict()[name], state[name])
    target.load_state_dict(state)  # the grid is its own then
    assert target.layers[1].attn.relative_position_grid.tolist() == [4, 4]
    wrong = state | {
        'layers.1.attn.relative_position_grid': torch.tensor([5, 6])
    }
    with pytest.raises(InputError, match='says 5x6, which is not the grid of'):
        target.adapt_state_dict(wrong)


def test_settings_that_do_not_fit():
    with pytest.raises(InputError, match="window_size is.*'raw'.*'featmap'"):
        tiny_models.encoder('rmae', out_type='raw', window_size=4)
    with pytest.raises(InputError, match='global_blocks is.*window_size is N'):
        tiny_models.encoder('rmae', out_type='featmap', global_blocks=(1,))
    with pytest.raises(InputError, match='global_blocks holds 7.*2 blocks'):
        tiny_models.encoder(
            'lomar', out_type='featmap', window_size=4, global_blocks=(7,)
        )
    with pytest.raises(InputError, match='one table for all blocks'):
        tiny_models.encoder(
            'ropim',
            out_type='featmap',
            window_size=4,
            use_rel_pos_bias=False,
            use_shared_rel_pos_bias=True,
        )


@pytest.mark.gpu
@pytest.mark.parametrize('method', tiny_models.METHODS)
def test_devices_agree(method, monkeypatch):
    """In windows, and globally with the logits made a few rows at a time."""
    monkeypatch.setattr(irpe, 'WHOLE', 16)
    monkeypatch.setattr(attentions, 'WHOLE', 16)
    monkeypatch.setattr(large_grids, 'ROWS', 24)
    model = dense(method, out_indices=(0, 1))
    tiny_models.shake(model)
    image = torch.randn(2, 3, 64, 72)
    results = []
    for device in ('cpu', 'cuda'):
        model.to(device).zero_grad()
        outs = model(image.to(device))
        sum(out.square().mean() for out in outs).backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        results.append([t.detach().cpu() for t in (*outs, *grads)])
    for on_cpu, on_gpu in zip(*results, strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-4)
