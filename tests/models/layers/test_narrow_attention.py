import pytest
import torch

from ropim_mm.models.layers import SelfAttention
from ropim_mm.models.layers.narrow_attention import (
    NarrowAttention,
    attend_from,
)


def written_out(qkv, start):
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    weights = q[:, :, start:] @ k.transpose(2, 3) / qkv.shape[-1] ** 0.5
    return (weights.softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize('start', [0, 2, 6])
@pytest.mark.parametrize('kind', [torch.float32, torch.float64])
def test_values_and_gradient(start, kind):
    """float64 takes the way of types below float32."""
    torch.manual_seed(0)
    qkv = torch.randn(2, 7, 3, 4, 5, dtype=kind, requires_grad=True)
    ours, expected = attend_from(qkv, start), written_out(qkv, start)
    assert ours.shape == (2, 7 - start, 4, 5)
    close = dict(rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours, expected, **close)
    seed = torch.randn_like(expected)
    (a,) = torch.autograd.grad(ours, qkv, seed)
    (b,) = torch.autograd.grad(expected, qkv, seed)
    torch.testing.assert_close(a, b, **close)
    torch.testing.assert_close(attend_from(qkv.detach(), start), expected)


def test_bfloat16_is_near():
    torch.manual_seed(0)
    qkv = torch.randn(2, 33, 3, 4, 16)
    half = qkv.bfloat16().requires_grad_()
    expected = written_out(qkv, 5)
    ours = attend_from(half, 5)
    assert ours.dtype == torch.bfloat16
    assert (ours - expected).abs().max() < 0.03
    ours.sum().backward()
    assert half.grad.dtype == torch.bfloat16
    assert not half.grad[:, :5, 0].any() and half.grad[:, 5:, 0].any()


def test_module_is_self_attention_of_the_last_tokens():
    torch.manual_seed(0)
    ours, plain = NarrowAttention(12, 3), SelfAttention(12, 3)
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(2, 6, 12)
    expected = plain(x)
    torch.testing.assert_close(ours(x), expected)
    torch.testing.assert_close(ours(x, 4), expected[:, 4:])
