import pytest
import torch
from torch.nn import functional as F

from ropim_mm.models.layers import RelPosAttention, attend
from ropim_mm.models.layers.attention import scaled_linear


def plain(q, k, v, bias):
    logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if bias is not None:
        logits = logits + bias
    return logits.softmax(-1) @ v


def tensors(batch_of_bias=1, dtype=torch.float64):
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(2, 7, 3, 4, dtype=dtype).transpose(1, 2) for _ in range(3)
    )
    bias = torch.randn(batch_of_bias, 3, 7, 7, dtype=dtype)
    return [t.requires_grad_() for t in (q, k, v, bias)]


@pytest.mark.parametrize('batch_of_bias', [1, 2])
def test_forward_and_gradients_with_a_learned_bias(batch_of_bias):
    ours, theirs = tensors(batch_of_bias), tensors(batch_of_bias)
    weight = torch.randn(2, 3, 7, 4, dtype=torch.float64)
    out, expected = attend(*ours), plain(*theirs)
    torch.testing.assert_close(out, expected)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_without_gradient_or_bias():
    q, k, v, bias = (t.detach() for t in tensors())
    torch.testing.assert_close(attend(q, k, v, bias), plain(q, k, v, bias))
    torch.testing.assert_close(attend(q, k, v), plain(q, k, v, None))


def test_bfloat16_under_autocast():
    q, k, v, bias = tensors(dtype=torch.float32)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), bias)
        out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(
        out.float(), plain(q, k, v, bias), rtol=0.05, atol=0.05
    )
    assert bias.grad.dtype == torch.float32


def test_dropout_of_weights():
    torch.manual_seed(0)
    q, k, v, bias = tensors()
    dropped = attend(q, k, v, bias, dropout=0.5)
    assert not torch.allclose(dropped, plain(q, k, v, bias))


@pytest.mark.parametrize('qkv_bias', ['qv_bias', True, False])
def test_layer_against_its_equation(qkv_bias):
    torch.manual_seed(0)
    layer = RelPosAttention(8, 2, grid=(2, 3), qkv_bias=qkv_bias)
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    x, gamma = torch.randn(2, 7, 8), torch.randn(8)
    qkv = x @ layer.qkv.weight.T
    if qkv_bias == 'qv_bias':
        zeros = torch.zeros(8)
        qkv = qkv + torch.cat((layer.q_bias, zeros, layer.v_bias))
    elif qkv_bias:
        qkv = qkv + layer.qkv.bias
    q, k, v = qkv.view(2, 7, 3, 2, 4).permute(2, 0, 3, 1, 4)
    table = layer.relative_position_bias_table
    bias = table[layer.relative_position_index].permute(2, 0, 1)[None]
    mixed = plain(q, k, v, bias).transpose(1, 2).flatten(2)
    expected = gamma * F.linear(mixed, layer.proj.weight, layer.proj.bias)
    torch.testing.assert_close(
        layer(x, (2, 3), None, gamma), expected, rtol=1e-4, atol=1e-4
    )


def test_gamma_folded_into_the_weights():
    linear = torch.nn.Linear(5, 4)
    x, gamma = torch.randn(3, 5), torch.randn(4)
    torch.testing.assert_close(
        scaled_linear(x, linear, gamma), gamma * linear(x)
    )


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match='embed_dims 10 .* num_heads 4'):
        RelPosAttention(10, 4)
