import random

import pytest
import torch

from ropim_mm.models.layers import make_sketch, num_buckets, sample_sketch

SIZES = [(2, 0.5), (16, 0.14), (49, 0.14), (196, 0.14), (100, 0.07)] + [
    (random.Random(i).randint(2, 150), random.Random(-i).uniform(0.01, 0.99))
    for i in range(1, 16)
]


def matrices(tokens, ratio, batch=3, **kwargs):
    size = num_buckets(tokens, ratio)
    buckets, signs = sample_sketch(batch, tokens, size)
    sketch = make_sketch(buckets, signs, size, **kwargs)
    eye = torch.eye(tokens).expand(batch, -1, -1)
    return sketch, sketch.project(eye)


@pytest.mark.parametrize(('tokens', 'ratio'), SIZES)
def test_is_an_orthogonal_projector(tokens, ratio):
    torch.manual_seed(tokens)
    sketch, p = matrices(tokens, ratio)
    torch.testing.assert_close(p @ p, p, rtol=0, atol=1e-6)
    assert torch.equal(p, p.transpose(1, 2))
    rank = torch.linalg.matrix_rank(p.double(), hermitian=True)
    assert rank.tolist() == [num_buckets(tokens, ratio)] * 3


@pytest.mark.parametrize(('tokens', 'ratio'), SIZES)
def test_parts_sum_to_the_whole_and_are_orthogonal(tokens, ratio):
    torch.manual_seed(tokens)
    sketch, _ = matrices(tokens, ratio)
    x = torch.randn(3, tokens, 5)
    kept, removed = sketch.project(x), sketch.complement(x)
    torch.testing.assert_close(kept + removed, x, rtol=0, atol=1e-6)
    product = (kept * removed).sum((1, 2))
    assert product.abs().max() < 1e-4 * x.square().sum()
    again = sketch.project(removed)
    assert again.abs().max() < 1e-5


@pytest.mark.parametrize(('tokens', 'ratio'), SIZES)
def test_buckets_are_even_and_signs_balanced(tokens, ratio):
    torch.manual_seed(tokens)
    size = num_buckets(tokens, ratio)
    buckets, signs = sample_sketch(4, tokens, size)
    for row in buckets:
        loads = torch.bincount(row, minlength=size)
        assert loads.max() - loads.min() <= 1
    assert signs.abs().eq(1).all()
    assert (signs.sum(1).abs() == tokens % 2).all()


def test_draws_are_independent_and_uniform():
    torch.manual_seed(0)
    buckets, signs = sample_sketch(4000, 7, 3)
    assert not torch.equal(buckets[0], buckets[1])
    for token in range(7):
        share = torch.bincount(buckets[:, token], minlength=3) / 4000
        torch.testing.assert_close(
            share, torch.full((3,), 1 / 3), rtol=0, atol=0.04
        )
    assert signs.mean(0).abs().max() < 0.07
    # Within a chunk no bucket comes twice.
    assert (buckets[:, :3].sort(1).values == torch.arange(3)).all()


def test_generator_repeats():
    draws = [
        sample_sketch(2, 9, 4, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    ]
    assert torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(draws[0][1], draws[1][1])


def test_constant_scale():
    sketch, p = matrices(36, 0.14, scale=0.14)
    eigenvalues = torch.linalg.eigvalsh(p[0])
    torch.testing.assert_close(eigenvalues[-6:], torch.full((6,), 0.84))


def test_empty_buckets_do_no_harm():
    buckets = torch.tensor([[0, 0, 5, 5]])
    signs = torch.tensor([[1.0, -1.0, 1.0, 1.0]])
    x = torch.arange(4.0).view(1, 4, 1)
    out = make_sketch(buckets, signs, 9).project(x)
    assert out.flatten().tolist() == [-0.5, 0.5, 2.5, 2.5]


def test_gradient_is_the_projection():
    torch.manual_seed(0)
    sketch, p = matrices(10, 0.3, batch=1)
    x = torch.randn(1, 10, 4, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(1, 10, 4)
    (sketch.project(x) * weight).sum().backward()
    torch.testing.assert_close(x.grad, p @ weight)


def test_sums_are_float32_under_autocast():
    torch.manual_seed(0)
    sketch, p = matrices(64, 0.05, batch=1)
    x = torch.randn(1, 64, 8).bfloat16()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = sketch.project(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, (p @ x.float()).bfloat16())


@pytest.mark.parametrize('ratio', [0.0, 1.0, -0.1, 1.5])
def test_ratio_outside_its_range(ratio):
    with pytest.raises(ValueError, match=f'sketch_ratio is {ratio}'):
        num_buckets(16, ratio)


def test_more_buckets_than_tokens():
    with pytest.raises(ValueError, match='sketch of 4 tokens.*5 buckets'):
        sample_sketch(1, 4, 5)


def test_sketch_of_other_tokens():
    sketch, _ = matrices(9, 0.3)
    with pytest.raises(ValueError, match=r'\(3, 9\).*\(3, 8, 2\)'):
        sketch.project(torch.zeros(3, 8, 2))
