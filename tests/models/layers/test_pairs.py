import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ropim_mm.models.layers import pairs as module
from ropim_mm.models.layers.pairs import (
    Pairs,
    cross_entropy,
    read_and_compare,
    take_apart,
)


def layers(width=12, hidden=10, pixels=6):
    torch.manual_seed(0)
    norm = nn.LayerNorm(width, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return (
        norm,
        nn.Linear(width, hidden),
        nn.Linear(hidden, width),
        nn.Linear(width, pixels),
    )


def data(batch=2, count=3, length=4, width=12, pixels=6):
    torch.manual_seed(1)
    queries = torch.randn(batch, count, width, requires_grad=True)
    memory = (torch.randn(batch, length, width) * 3 + 1).requires_grad_()
    target = torch.rand(batch, count, length, pixels) > 0.6
    return queries, memory, target


def plain(queries, memory, parts):
    norm, first, second, last = parts
    pairs = first(norm(queries.unsqueeze(2) + memory.unsqueeze(1)))
    return pairs, last(F.gelu(second(F.gelu(pairs))))


def test_pairs_joined_are_the_pairs():
    parts = layers()
    queries, memory, _ = data()
    ours = take_apart(queries, memory, *parts[:2]).join()
    expected, _ = plain(queries, memory, parts)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    params = [queries, memory, *parts[0].parameters(), *parts[1].parameters()]
    seed = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(ours, params, seed),
        torch.autograd.grad(expected, params, seed),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_pairs_that_cancel_are_finite():
    """m = -q leaves rounding where the variance was."""
    norm, first, *_ = layers(8)
    torch.manual_seed(0)
    queries = (torch.randn(1, 64, 8) * 1e3).requires_grad_()
    out = take_apart(queries, -queries.detach(), norm, first).join()
    out.sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(queries.grad).all()


# The last two: chunks of two images, and of one, with an image left over.
@pytest.mark.parametrize('chunk', [1024, 8, 4])
@pytest.mark.parametrize('bg_weight', [1.0, 0.25])
@pytest.mark.parametrize('soft', [False, True])
def test_loss_is_the_plain_one(monkeypatch, chunk, bg_weight, soft):
    monkeypatch.setattr(module, 'CHUNK', chunk)
    parts = layers()
    queries, memory, target = data(batch=3)
    if soft:
        target = target * 0.8
    _, logits = plain(queries, memory, parts)
    each = F.binary_cross_entropy_with_logits(
        logits, target.float(), reduction='none'
    )
    expected = torch.where(target == 0, bg_weight * each, each).mean()
    params = [queries, memory, *(p for m in parts for p in m.parameters())]
    pairs = take_apart(queries, memory, *parts[:2])
    ours = read_and_compare(pairs, *parts[2:], target, bg_weight)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)
    for a, b in zip(
        torch.autograd.grad(3 * ours, params),
        torch.autograd.grad(3 * expected, params),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    # Without gradients another way is taken.
    with torch.no_grad():
        pairs = Pairs(*(p.detach() for p in pairs))
        ours = read_and_compare(pairs, *parts[2:], target, bg_weight)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)


def test_loss_under_autocast():
    parts = layers(32, 32, 64)
    queries, memory, target = data(4, 8, 16, 32, 64)
    params = [queries, memory, *(p for m in parts for p in m.parameters())]

    def run():
        pairs = take_apart(queries, memory, *parts[:2])
        loss = read_and_compare(pairs, *parts[2:], target)
        return loss, torch.autograd.grad(loss, params)

    exact, exact_grads = run()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss, grads = run()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=5e-3, atol=0)
    for a, b in zip(grads, exact_grads, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.02 * b.norm()


def test_cross_entropy_of_certain_logits():
    logits = torch.tensor([-200.0, 200.0, 200.0, 0.0])
    target = torch.tensor([False, True, False, True])
    expected = (200 + torch.log(torch.tensor(2.0))) / 4
    torch.testing.assert_close(cross_entropy(logits, target), expected)
    loss, gradient = module._entropy_and_gradient(logits, target.float(), 1.0)
    torch.testing.assert_close(loss / 4, expected)
    assert gradient.tolist() == [0.0, 0.0, 1.0, -0.5]
