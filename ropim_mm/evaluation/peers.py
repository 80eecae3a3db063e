"""What this project is measured against, where a config alone will not do.

Not imported with ``ropim_mm``: the configs in ``configs/peers`` name this
module in ``custom_imports``.
"""

import torch
from mmpretrain.models.selfsup.beit import BEiTPretrainViT

from ropim_mm.registry import MODELS


@MODELS.register_module()
class BEiTSimMIMViT(BEiTPretrainViT):
    """MMPretrain's BEiT encoder, as MMPretrain's SimMIM expects one.

    ``BEiTPretrainViT`` gives tokens whatever its ``out_type`` is, and
    SimMIM's decoder takes a feature map. Nothing else is changed.
    """

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        """Encode images of which some patches are masked.

        Args:
            x: (B, C, H, W).
            mask: (B, h, w), 1 for masked patches, or None.

        Returns:
            (B, D, h, w) for each of ``out_indices``; without a mask what the
            base class gives.
        """
        outs = super().forward(x, mask)
        if mask is None:
            return outs
        return tuple(
            tokens[:, 1:].transpose(1, 2).unflatten(2, mask.shape[1:])
            for tokens in outs
        )
