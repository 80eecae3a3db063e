"""The matrix products of a step, without the step."""

import torch
from torch.utils._pytree import tree_unflatten
from torch.utils.flop_counter import FlopCounterMode

from ropim_mm.evaluation.products import ProductsAlone, _Operand


class Step:
    """Stands for a training step."""

    device = torch.device('cpu')

    def __init__(self, run):
        self.run = run

    def __call__(self):
        self.run()


def mlp():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 8)
    )
    x = torch.randn(3, 5, 8, requires_grad=True)
    keys = torch.randn(3, 8, 5)

    def run():
        with torch.autocast('cpu', torch.bfloat16):
            out = model(x) @ keys
        out.sum().backward()

    return run


def flops_of(products):
    """Operations of the recorded calls, counted while they run again."""
    total = 0
    for (func, described, spec), count in products._calls.items():
        values = [
            v.make() if isinstance(v, _Operand) else v for v in described
        ]
        args, kwargs = tree_unflatten(values, spec)
        with FlopCounterMode(display=False) as counter:
            func(*args, **kwargs)
        total += count * counter.get_total_flops()
    return total


def test_every_product_of_the_step_and_no_other():
    run = mlp()
    with FlopCounterMode(display=False) as counter:
        run()
    products = ProductsAlone(Step(run))
    # Two layers and one product of batches, forward and twice backward.
    assert products.count == 8
    assert flops_of(products) == counter.get_total_flops()
    assert products.seconds() > 0


def test_fused_attention_is_a_product():
    q = torch.randn(2, 4, 9, 16, requires_grad=True)

    def run():
        out = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        out.sum().backward()

    products = ProductsAlone(Step(run))
    assert products.count == 2  # forward, backward
    assert products.seconds() > 0


def test_operands_are_laid_out_as_they_were():
    seen = torch.empty(4, 6).t()
    made = _Operand(seen).make()
    assert (made.shape, made.stride()) == (seen.shape, seen.stride())
    expanded = torch.empty(1, 6, dtype=torch.bfloat16).expand(4, 6)
    made = _Operand(expanded).make()
    assert made.stride() == (0, 1) and made.dtype == torch.bfloat16
    assert _Operand(torch.empty(0, 3)).make().shape == (0, 3)
    assert _Operand(seen) == _Operand(torch.randn(4, 6).t()) != _Operand(made)
