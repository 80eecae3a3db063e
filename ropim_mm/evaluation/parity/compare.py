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
        rel_error: Largest error relative to the reference's element.
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
    """Element by element: |ours - ref| <= max(floor, relative * |ref|)."""
    ours, reference = ours.detach().double(), reference.double()
    if ours.shape != reference.shape:
        return Comparison(
            name,
            float('inf'),
            float('inf'),
            float('inf'),
            f'shape {tuple(ours.shape)}, reference {tuple(reference.shape)}',
        )
    if not ours.numel():
        return Comparison(name, 0.0, 0.0, 0.0, note)
    error = (ours - reference).abs()
    size = reference.abs()
    allowed = (relative * size).clamp(min=floor)
    above = size > floor
    rel = (error / size)[above].max().item() if above.any() else 0.0
    return Comparison(
        name, error.max().item(), rel, (error / allowed).max().item(), note
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
