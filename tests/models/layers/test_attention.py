import pytest
import torch
from torch.nn import functional as F

from ropim_mm.models.layers import RelPosAttention, attend, attention


def plain(qkv, bias):
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if bias is not None:
        logits = logits + bias
    return (logits.softmax(-1) @ v).transpose(1, 2)


def tensors(batch_of_bias=1, dtype=torch.float64):
    torch.manual_seed(0)
    qkv = torch.randn(2, 7, 3, 3, 5, dtype=dtype)
    bias = torch.randn(batch_of_bias, 3, 7, 7, dtype=dtype)
    return [qkv.requires_grad_(), bias.requires_grad_()]


@pytest.mark.parametrize('batch_of_bias', [1, 2])
def test_forward_and_gradients_with_a_learned_bias(batch_of_bias):
    ours, theirs = tensors(batch_of_bias), tensors(batch_of_bias)
    weight = torch.randn(2, 7, 3, 5, dtype=torch.float64)
    out, expected = attend(*ours), plain(*theirs)
    assert out.shape == (2, 7, 3, 5)
    torch.testing.assert_close(out, expected)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize('short', [0, 512])
@pytest.mark.parametrize('constant', [True, False])
def test_gradients_without_a_learned_bias(short, constant, monkeypatch):
    monkeypatch.setattr(attention, 'SHORT', short)
    (ours, bias), (theirs, _) = tensors(), tensors()
    bias = bias.detach() if constant else None
    attend(ours, bias).square().sum().backward()
    plain(theirs, bias).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_without_gradients():
    qkv, bias = (t.detach() for t in tensors())
    torch.testing.assert_close(attend(qkv, bias), plain(qkv, bias))
    torch.testing.assert_close(attend(qkv), plain(qkv, None))


def test_inputs_are_left_as_they_are():
    qkv, bias = tensors()
    before = qkv.detach().clone(), bias.detach().clone()
    attend(qkv, bias).sum().backward()
    assert torch.equal(qkv, before[0]) and torch.equal(bias, before[1])


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('length', [1, 197, 1025])
@pytest.mark.parametrize('with_bias', [True, False])
def test_softmax_in_place(length, dtype, with_bias, monkeypatch):
    monkeypatch.setattr(attention, 'SHORT', 2000)
    torch.manual_seed(0)
    qkv = torch.randn(1, length, 3, 2, 8).to(dtype).requires_grad_()
    # Heads innermost, as a table's look-up leaves them.
    bias = torch.randn(1, length, length, 2).permute(0, 3, 1, 2)
    bias.requires_grad_()
    exact = qkv.detach().double().requires_grad_()
    weight = torch.randn(1, length, 2, 8)
    out = attend(qkv, bias if with_bias else None)
    expected = plain(exact, bias.double() if with_bias else None)
    (out.float() * weight).sum().backward()
    grad_bias, bias.grad = bias.grad, None
    (expected * weight).sum().backward()
    pairs = [(out, expected), (qkv.grad, exact.grad)]
    if with_bias:
        pairs.append((grad_bias, bias.grad))
    for ours, theirs in pairs:
        # One token has no choice: the gradient of its logit is zero.
        size = theirs.abs().max().clamp(min=0.1)
        error = (ours.double() - theirs).abs().max() / size
        assert error < (1e-5 if dtype == torch.float32 else 0.03)


def test_bfloat16_is_no_worse_than_plain_autocast():
    torch.manual_seed(0)
    qkv = 3 * torch.randn(2, 50, 3, 4, 64)
    bias = torch.randn(1, 4, 50, 50, requires_grad=True)
    exact = plain(qkv.double(), bias.double())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = attend(qkv.bfloat16(), bias)
        simple = plain(qkv.bfloat16(), bias.bfloat16())
    assert out.dtype == torch.bfloat16
    error = (out - exact).square().mean()
    assert error < 1.1 * (simple - exact).square().mean()
    out.float().sum().backward()
    assert bias.grad.dtype == torch.float32


def test_dropout_of_weights():
    torch.manual_seed(0)
    qkv, bias = tensors()
    dropped = attend(qkv, bias, dropout=0.5)
    assert not torch.allclose(dropped, plain(qkv, bias))


@pytest.mark.parametrize('qkv_bias', ['qv_bias', True, False])
def test_layer_against_its_equation(qkv_bias):
    torch.manual_seed(0)
    layer = RelPosAttention(8, 2, grid=(2, 3), qkv_bias=qkv_bias)
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(2, 7, 8)
    qkv = x @ layer.qkv.weight.T
    if qkv_bias == 'qv_bias':
        zeros = torch.zeros(8)
        qkv = qkv + torch.cat((layer.q_bias, zeros, layer.v_bias))
    elif qkv_bias:
        qkv = qkv + layer.qkv.bias
    table = layer.relative_position_bias_table
    bias = table[layer.relative_position_index].permute(2, 0, 1)[None]
    mixed = plain(qkv.view(2, 7, 3, 2, 4), bias).flatten(2)
    expected = F.linear(mixed, layer.proj.weight, layer.proj.bias)
    torch.testing.assert_close(
        layer(x, (2, 3)), expected, rtol=1e-4, atol=1e-4
    )


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match='embed_dims 10 .* num_heads 4'):
        RelPosAttention(10, 4)
