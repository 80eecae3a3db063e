"""Heads of this package's recipes that no method owns."""

import torch
from mmpretrain.models.heads import LinearClsHead as _LinearClsHead

from ropim_mm.registry import MODELS


@MODELS.register_module()
class LinearClsHead(_LinearClsHead):
    """MMPretrain's linear classifier with its loss in float32.

    Under autocast the logits are bfloat16. On a GPU autocast computes
    ``log_softmax`` in float32, on a CPU it does not: there the loss would be
    rounded to three digits. Arguments and state dict are those of
    ``mmpretrain.LinearClsHead``.
    """

    def _get_loss(
        self, cls_score: torch.Tensor, data_samples: list, **kwargs
    ) -> dict[str, torch.Tensor]:
        return super()._get_loss(cls_score.float(), data_samples, **kwargs)
