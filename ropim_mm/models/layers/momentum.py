"""A copy of some modules that follows them slowly.

The momentum copy (or teacher) of MoCo, BYOL and ConMIM: the same modules,
whose parameters are an exponential moving average of the originals'. Buffers
are not averaged: the running statistics of a BatchNorm move by the copy's own
forward passes.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from ...errors import InputError


class MomentumCopy(nn.Module):
    """Exponential moving average of modules in training.

    .. code-block:: python

        momentum = MomentumCopy(backbone=backbone, neck=neck)
        with torch.no_grad():
            target = momentum.neck(momentum.backbone(images)[0])
        ...  # the optimizer's step
        momentum.update(0.996)

    The copies take part in ``state_dict`` under their names, so a resumed run
    continues with exactly these; they have no gradients, and no optimizer
    gets them. Data-parallel training needs no communication: all processes
    start with equal copies and average equal parameters.

    Args:
        **originals: Names to the modules to copy. They stay where they are
            and are not registered a second time.
    """

    def __init__(self, **originals: nn.Module) -> None:
        super().__init__()
        # In a tuple, where PyTorch does not look for modules.
        self._originals = tuple(originals.items())
        self._pairs: tuple[list, list] | None = None
        for name, module in originals.items():
            self.add_module(name, deepcopy(module).requires_grad_(False))

    @torch.no_grad()
    def init_weights(self) -> None:
        """Start as exact copies, buffers included.

        MMEngine calls this once the originals, which come before, have their
        initial weights.
        """
        for name, original in self._originals:
            own = getattr(self, name).state_dict()
            for key, tensor in original.state_dict().items():
                own[key].copy_(tensor)

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """copy = momentum * copy + (1 - momentum) * original, in place.

        One fused operation over all parameters.

        Args:
            momentum: In [0, 1].

        Raises:
            InputError: ``momentum`` is outside [0, 1].
        """
        if not 0 <= momentum <= 1:
            raise InputError(
                f'the momentum of a copy is {momentum}; expected a number in '
                '[0, 1], such as 0.996'
            )
        copies, originals = self._parameters_in_pairs()
        torch._foreach_lerp_(copies, originals, 1.0 - momentum)

    def _parameters_in_pairs(self) -> tuple[list, list]:
        # Walking through the modules takes longer than the arithmetic.
        if self._pairs is None:
            copies, originals = [], []
            for name, original in self._originals:
                of_copy = dict(getattr(self, name).named_parameters())
                for key, parameter in original.named_parameters():
                    copies.append(of_copy[key])
                    originals.append(parameter)
            self._pairs = copies, originals
        return self._pairs

    def _apply(self, *args, **kwargs) -> MomentumCopy:
        # A move to another device may replace the parameters.
        self._pairs = None
        return super()._apply(*args, **kwargs)
