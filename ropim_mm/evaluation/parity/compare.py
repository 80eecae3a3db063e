"""How two quantities are compared."""

from __future__ import annotations

from dataclasses import dataclass

import torch

RELATIVE = 1e-5
FLOOR = 1e-6


@dataclass
class Comparison:
    """One compared quantity.

    Attributes:
        name: What was compared.
        abs_error: Largest absolute error.
        rel_error: Largest error relative to the reference (its element, or
            its largest element where ``note`` says so).
        excess: Largest error as a share of what is tolerated; at most 1 is
            within tolerance. Infinite where the comparison is impossible.
        note: Why it is compared as it is, or what is wrong.
    """

    name: str
    abs_error: float
    rel_error: float
    excess: float
    note: str = ''

    @property
    def ok(self) -> bool:
        # Not "excess > 1": an error of nan must fail.
        return self.excess <= 1.0


def close(
    name: str,
    ours: torch.Tensor,
    reference: torch.Tensor,
    relative: float = RELATIVE,
    floor: float = FLOOR,
    note: str = '',
) -> Comparison:
    """Element by element: |ours - ref| <= floor + relative * |ref|."""
    return _compare(name, ours, reference, relative, floor, False, note)


def close_in_scale(
    name: str, ours: torch.Tensor, reference: torch.Tensor
) -> Comparison:
    """As :func:`close`; if that fails, relative to the largest element.

    For activations: an element near zero is the difference of products
    hundreds of times its size, and both sides carry the float32 rounding of
    those, in an order of summation that depends on the machine. Elements of
    at least a tenth of the largest still agree within 1e-4 of their own size.
    """
    strict = close(name, ours, reference)
    if strict.ok:
        return strict
    note = (
        'relative to the largest element, since small ones are differences '
        f'of large ones (by its own size {strict.rel_error:.1e}, '
        f'{strict.excess:.2f} of tolerance)'
    )
    return _compare(name, ours, reference, RELATIVE, FLOOR, True, note)


def _compare(
    name: str,
    ours: torch.Tensor,
    reference: torch.Tensor,
    relative: float,
    floor: float,
    in_scale: bool,
    note: str,
) -> Comparison:
    ours, reference = ours.detach().double(), reference.double()
    if ours.shape != reference.shape:
        bad = float('inf')
        shapes = f'shape {tuple(ours.shape)} != {tuple(reference.shape)}'
        return Comparison(name, bad, bad, bad, shapes)
    if not ours.numel():
        return Comparison(name, 0.0, 0.0, 0.0, note)
    error, size = (ours - reference).abs(), reference.abs()
    if in_scale:
        size = size.max().expand_as(size)
    rel = (error / size.clamp(min=1e-30))[size > 0]
    return Comparison(
        name,
        error.max().item(),
        rel.max().item() if rel.numel() else 0.0,
        (error / (floor + relative * size).clamp(min=1e-300)).max().item(),
        note,
    )


def exact(name: str, ours: object, reference: object) -> Comparison:
    """Equal or not, for names, groups, counts and integer tensors."""
    if isinstance(ours, torch.Tensor):
        equal = torch.equal(ours, reference)
    else:
        equal = ours == reference
    if equal:
        return Comparison(name, 0.0, 0.0, 0.0, 'exact')
    bad = float('inf')
    text = '' if isinstance(ours, torch.Tensor) else f'{ours} != {reference}'
    return Comparison(name, bad, bad, bad, f'differs {text[:200]}')
