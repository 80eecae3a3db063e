r"""ROPIM: Pre-training with Random Orthogonal Projection Image Modeling.

Haghighat, Moghadam, Mohamed and Koniusz, ICLR 2024 (arXiv 2310.18737).

Patch tokens x of an image are projected onto a random subspace, P x, by count
sketching. The encoder and a linear decoder rebuild the image, and the loss
asks for what the projection removed:

.. math::

    \mathcal{L} = \operatorname{mean}
        \left| (I - P)\,(\mathrm{target} - \mathrm{reconstruction}) \right|

Written for this project from the paper and from measurements. It differs from
the released code where that approximates: there P is scaled by 0.14 whatever
the size of a bucket, so that P P is only near P, and only grids of 2x2, 6x6
and 14x14 work. Here P is an exact orthogonal projector for every grid;
``sketch_scale=0.14`` gives the released numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from mmengine.model import BaseModule
from mmpretrain.structures import DataSample
from torch import nn
from torch.nn import functional as F

from ...errors import InputError
from ...registry import MODELS
from ..layers.beit import BEiTStyleViT
from ..layers.patches import Size, patchify, to_pair, unpatchify
from ..layers.sketch import (
    CountSketch,
    make_sketch,
    num_buckets,
    sample_sketch,
)
from .base import SelfSupervisor, replayed


@MODELS.register_module()
class ROPIMViT(BEiTStyleViT):
    """Encoder of ROPIM: a BEiT-style ViT whose tokens may be projected.

    Without a projection it is an ordinary backbone for classification,
    segmentation and detection. Arguments, weights' names and outputs are
    those of :class:`~ropim_mm.models.layers.BEiTStyleViT`. For pretraining:
    ``out_type='raw', final_norm=True, use_rel_pos_bias=False,
    use_shared_rel_pos_bias=True, init_cutoff=0.02``.
    """


@MODELS.register_module()
class ROPIMNeck(BaseModule):
    """Decoder of ROPIM: one linear map from a token to its patch's pixels.

    Weights are laid out as MMPretrain's ``SimMIMLinearDecoder`` has them (a
    1x1 convolution followed by a pixel shuffle), but the output stays in
    patches, where the loss needs it, and channels and patch are free.

    Args:
        embed_dims: D, width of a token.
        patch_size: Side or (height, width) of a patch.
        out_channels: C, channels of the image.
        init_cfg: See MMEngine's ``BaseModule``.
    """

    def __init__(
        self,
        embed_dims: int,
        patch_size: Size = 16,
        out_channels: int = 3,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        ph, pw = to_pair(patch_size)
        self.decoder = nn.Sequential(
            nn.Conv2d(embed_dims, out_channels * ph * pw, kernel_size=1)
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Patch tokens (B, L, D) -> patches (B, L, C * ph * pw)."""
        conv = self.decoder[0]
        return F.linear(tokens, conv.weight.flatten(1), conv.bias)


@MODELS.register_module()
class ROPIMHead(BaseModule):
    """Loss of ROPIM: mean absolute error in the removed subspace.

    Args:
        patch_size: Side or (height, width) of a patch.
        init_cfg: See MMEngine's ``BaseModule``.
    """

    def __init__(
        self, patch_size: Size = 16, init_cfg: dict | list | None = None
    ) -> None:
        super().__init__(init_cfg)
        self.patch_size = to_pair(patch_size)

    def residual(
        self, pred: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        """Target image minus reconstruction, in patches, float32.

        Args:
            pred: (B, L, C * ph * pw), values ordered (channel, row, column).
            target: (B, C, H, W).

        Returns:
            (B, L, C * ph * pw)
        """
        return patchify(target, self.patch_size).float() - pred.float()

    def loss(
        self,
        pred: torch.Tensor,
        target: torch.Tensor,
        removed: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """mean |removed(target - pred)|, a scalar.

        Args:
            pred: (B, L, C * ph * pw).
            target: (B, C, H, W).
            removed: (B, L, d) -> (B, L, d), the part of the tokens that the
                input was deprived of.
        """
        return removed(self.residual(pred, target)).abs().mean()


@MODELS.register_module()
class ROPIM(SelfSupervisor):
    """ROPIM pretraining.

    A data sample may carry its sketch: ``sketch_hash`` int64 (L,), the bucket
    of each token in [0, L), and ``sketch_sign`` float (L,), -1 or +1. Where
    the samples have none, sketches are drawn on the model's device.

    Args:
        backbone: :class:`ROPIMViT`.
        neck: :class:`ROPIMNeck`.
        head: :class:`ROPIMHead`.
        sketch_ratio: Share of dimensions that the projection keeps, in
            (0, 1): rank K = ceil(ratio * L).
        sketch_scale: None for the exact projector; 0.14 for the constant of
            the released code.
        complement_input: Give the encoder (I - P) x and ask for P x instead
            (released as ``eye_sp_sketch``).
        project_input: Project the encoder's tokens at all. If not, only the
            loss projects (released as ``sp`` off).
        data_preprocessor: Default MMPretrain's ``SelfSupDataPreprocessor``.
        init_cfg: See MMEngine's ``BaseModule``.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict,
        sketch_ratio: float = 0.14,
        sketch_scale: float | None = None,
        complement_input: bool = False,
        project_input: bool = True,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            neck=neck,
            head=head,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg,
        )
        num_buckets(2, sketch_ratio)  # refuses a ratio outside (0, 1)
        self.sketch_ratio = sketch_ratio
        self.sketch_scale = sketch_scale
        self.complement_input = complement_input
        self.project_input = project_input

    def loss(
        self,
        inputs: torch.Tensor,
        data_samples: list[DataSample] | None = None,
    ) -> dict[str, torch.Tensor]:
        """One training step's loss.

        Args:
            inputs: (B, C, H, W), normalised images.
            data_samples: B samples, with or without sketches.

        Returns:
            ``dict(loss=scalar)``
        """
        kept, removed = self.projections(inputs, data_samples)
        pred = self.reconstruct(inputs, kept)
        return dict(loss=self.head.loss(pred, inputs, removed))

    def reconstruct(
        self,
        inputs: torch.Tensor,
        kept: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Patches rebuilt from the projected tokens.

        Args:
            inputs: (B, C, H, W).
            kept: (B, L, D) -> (B, L, D), applied to the patch tokens.

        Returns:
            (B, L, C * ph * pw)
        """
        (tokens,) = self.backbone(inputs, kept)
        return self.neck(tokens[:, 1:])

    def to_image(
        self, patches: torch.Tensor, image_size: tuple[int, int]
    ) -> torch.Tensor:
        """Patches (B, L, C * ph * pw) -> (B, C, H, W)."""
        rows, columns = self.head.patch_size
        grid = (image_size[0] // rows, image_size[1] // columns)
        return unpatchify(patches, self.head.patch_size, grid)

    def projections(
        self, inputs: torch.Tensor, data_samples: list[DataSample] | None
    ) -> tuple[Callable | None, Callable]:
        """What the encoder's tokens and the residual go through.

        Returns:
            (kept, removed), each (B, L, d) -> (B, L, d); kept is None where
            the input is not projected.
        """
        sketch = self.sketch(inputs, data_samples)
        kept, removed = sketch.project, sketch.complement
        if self.complement_input:
            kept, removed = removed, kept
        return (kept if self.project_input else None), removed

    def sketch(
        self, inputs: torch.Tensor, data_samples: list[DataSample] | None
    ) -> CountSketch:
        """The data samples' sketches, or new ones."""
        batch = inputs.shape[0]
        rows, columns = self.head.patch_size
        length = (inputs.shape[2] // rows) * (inputs.shape[3] // columns)
        meaning = f'one entry a patch of images of {tuple(inputs.shape[2:])}'
        buckets, signs = (
            replayed(data_samples, name, batch, (length,), meaning)
            for name in ('sketch_hash', 'sketch_sign')
        )
        if buckets is None and signs is None:
            size = num_buckets(length, self.sketch_ratio)
            if size == length:
                raise InputError(
                    f'sketch_ratio {self.sketch_ratio} of {length} tokens '
                    f'keeps {size} dimensions, which is all of them: nothing '
                    'is removed, and there is nothing to learn. Use a '
                    'smaller ratio (0.14 is the usual one) or larger images.'
                )
            buckets, signs = sample_sketch(
                batch, length, size, device=inputs.device
            )
            return make_sketch(buckets, signs, size, self.sketch_scale)
        if buckets is None or signs is None:
            lost = 'sketch_hash' if buckets is None else 'sketch_sign'
            raise InputError(
                f'the data samples carry no `{lost}`; expected both '
                '`sketch_hash` and `sketch_sign`, or neither'
            )
        buckets = buckets.to(inputs.device, torch.int64)
        # Any hash into at most L buckets is a sketch; the number of buckets
        # it uses is not known without waiting for the device.
        signs = signs.to(inputs.device)
        return make_sketch(buckets, signs, length, self.sketch_scale)
