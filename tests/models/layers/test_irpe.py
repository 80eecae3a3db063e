"""iRPE against its definition, written out with loops."""

import math

import pytest
import torch
from torch.nn import functional as F

from ropim_mm.errors import InputError
from ropim_mm.models.layers.irpe import (
    IRPEAttention,
    bucket_index,
    contextual_attend,
    contextual_product,
    num_buckets,
    piecewise_index,
)


def test_offsets_of_lomar():
    index = piecewise_index(torch.arange(-6, 7))
    assert index.dtype == torch.int64
    assert index.tolist() == [-3, -3, -3, -2, -2, -1, 0, 1, 2, 2, 3, 3, 3]
    assert piecewise_index(torch.tensor([40, -4000])).tolist() == [3, -3]


@pytest.mark.parametrize('pieces', [(1.9, 3.8, 15.2), (2.5, 5.0, 20.0)])
def test_offsets_are_the_equation(pieces):
    alpha, beta, gamma = pieces
    for offset in range(-30, 31):
        size = abs(offset)
        if size > alpha:
            log = math.log(size / alpha) / math.log(gamma / alpha)
            size = int(min(round(alpha + log * (beta - alpha)), beta))
        expected = int(math.copysign(size, offset))
        assert piecewise_index(torch.tensor(offset), *pieces) == expected
    assert num_buckets(beta) == (2 * int(beta) + 1) ** 2 + 1


@pytest.mark.parametrize(
    'pieces', [(0.0, 3.8, 15.2), (2.0, 1.5, 15.2), (1.9, 3.8, 1.0)]
)
def test_pieces_that_make_no_sense(pieces):
    with pytest.raises(InputError, match=r'expected 0 < alpha < beta'):
        IRPEAttention(8, 2, True, 0.0, 0.0, *pieces)


@pytest.mark.parametrize('grid', [(1, 1), (3, 3), (2, 5), (6, 1)])
def test_buckets_are_the_definition(grid):
    index = bucket_index(grid)
    tokens = [(y, x) for y in range(grid[0]) for x in range(grid[1])]
    assert index.shape == (1 + len(tokens),) * 2
    assert (index[0] == 49).all() and (index[:, 0] == 49).all()
    for i, (qy, qx) in enumerate(tokens):
        for j, (ky, kx) in enumerate(tokens):
            row, column = piecewise_index(torch.tensor([qy - ky, qx - kx]))
            assert index[1 + i, 1 + j] == (row + 3) * 7 + column + 3


def test_buckets_are_computed_on_the_device():
    on_meta = bucket_index((2, 3), device='meta')
    assert on_meta.is_meta and on_meta.shape == (7, 7)
    # An explicit device, and the one a table is on, whatever the default.
    with torch.device('meta'):
        assert bucket_index((2, 3), device='cpu').device.type == 'cpu'
        assert module().rpe_k.index((2, 3), torch.device('cpu')).max() == 49


def test_a_window_has_the_buckets_of_its_image():
    """Only offsets count, so one table serves windows and images."""
    whole = bucket_index((5, 8))[1:, 1:].view(5, 8, 5, 8)
    part = bucket_index((3, 3))[1:, 1:].view(3, 3, 3, 3)
    assert torch.equal(whole[1:4, 4:7, 1:4, 4:7], part)


def module(dims=16, heads=2, **options):
    torch.manual_seed(0)
    attention = IRPEAttention(dims, heads, **options)
    torch.nn.init.normal_(attention.rpe_k.lookup_table_weight)
    return attention


def written_out(attention, x, grid):
    """Token by token, head by head."""
    heads, table = attention.num_heads, attention.rpe_k.lookup_table_weight
    index = bucket_index(grid)
    batch, length, dims = x.shape
    q, k, v = attention.qkv(x).view(batch, length, 3, heads, -1).unbind(2)
    out = torch.zeros_like(q)
    for b in range(batch):
        for h in range(heads):
            for i in range(length):
                logits = k[b, :, h] @ q[b, i, h] / (dims / heads) ** 0.5
                for j in range(length):
                    # The query is not scaled here, as released.
                    logits[j] += q[b, i, h] @ table[0, :, index[i, j]]
                out[b, i, h] = logits.softmax(0) @ v[b, :, h]
    return attention.proj(out.flatten(2))


@pytest.mark.parametrize('grid', [(3, 3), (2, 4)])
def test_attention_is_the_definition(grid):
    attention = module()
    x = torch.randn(2, 1 + grid[0] * grid[1], 16)
    with torch.no_grad():
        expected = written_out(attention, x, grid)
    torch.testing.assert_close(
        attention(x, bucket_index(grid)), expected
    )  # in training
    with torch.no_grad():
        torch.testing.assert_close(attention(x, bucket_index(grid)), expected)
    with torch.inference_mode():
        torch.testing.assert_close(attention(x, bucket_index(grid)), expected)


def test_the_term_of_the_logits():
    attention = module()
    queries = torch.randn(2, 2, 7, 8)
    index = attention.rpe_k.index((2, 3), queries.device)
    term = attention.rpe_k(queries, index)
    table = attention.rpe_k.lookup_table_weight[0]
    expected = torch.einsum(
        'bhid,dij->bhij', queries, table[:, bucket_index((2, 3))]
    )
    torch.testing.assert_close(term, expected)


def test_gradients_of_the_written_out_attention():
    attention = module(8).double()
    index = bucket_index((2, 3))
    qkv = torch.randn(2, 7, 3, 2, 4, dtype=torch.double, requires_grad=True)
    table = attention.rpe_k.lookup_table_weight[0].detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda qkv, table: contextual_attend(qkv, table, index), (qkv, table)
    )


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_both_ways_give_the_same_gradients(dtype):
    """Written out, and PyTorch's own attention with the term as mask."""
    torch.manual_seed(0)
    index = bucket_index((4, 4))
    leaves = torch.randn(3, 17, 3, 2, 8), torch.randn(8, 50)
    upstream = torch.randn(3, 17, 2, 8)

    def run(attend, dtype):
        qkv, table = (t.clone().requires_grad_() for t in leaves)
        out = attend(qkv.to(dtype), table)
        (out.float() * upstream).sum().backward()
        return out.float(), qkv.grad, table.grad

    def plain(qkv, table):
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        bias = contextual_product(q, table.to(q.dtype), index)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return x.transpose(1, 2)

    exact = run(plain, torch.float32)
    ours = run(lambda *args: contextual_attend(*args, index), dtype)
    for one, other in zip(ours, exact, strict=True):
        error = (one - other).norm() / other.norm()
        assert error < (1e-6 if dtype == torch.float32 else 0.02)


def test_one_table_serves_every_grid():
    attention = module()
    assert attention.rpe_k.lookup_table_weight.shape == (1, 8, 50)
    for grid in ((3, 3), (7, 2), (1, 9)):
        x = torch.randn(1, 1 + grid[0] * grid[1], 16)
        assert attention(x, bucket_index(grid)).shape == x.shape


def test_dropout_of_the_weights():
    attention = module(attn_drop=0.5)
    x = torch.randn(2, 10, 16)
    assert not torch.equal(
        attention(x, bucket_index((3, 3))), attention(x, bucket_index((3, 3)))
    )
    attention.eval()
    assert torch.equal(
        attention(x, bucket_index((3, 3))), attention(x, bucket_index((3, 3)))
    )


def test_training_after_evaluation():
    """Indices are kept; those made in evaluation serve training too."""
    attention, x = module(), torch.randn(1, 36, 16)

    def run():
        return attention(x, attention.rpe_k.index((5, 7), x.device))

    with torch.inference_mode():
        run()
    run().sum().backward()
    assert attention.rpe_k.lookup_table_weight.grad.any()


@pytest.mark.parametrize('training', [True, False])
def test_compiles_in_one_graph(training):
    torch.compiler.reset()
    attention = module().train(training)
    x = torch.randn(2, 10, 16)
    compiled = torch.compile(attention, backend='aot_eager', fullgraph=True)
    torch.testing.assert_close(
        compiled(x, bucket_index((3, 3))), attention(x, bucket_index((3, 3)))
    )
