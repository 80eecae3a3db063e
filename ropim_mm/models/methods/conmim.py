r"""ConMIM: Masked Image Modeling with Denoising Contrast.

Yi, Ge, Li, Yang, Li, Wu, Shan and Qie, ICLR 2023 (arXiv 2205.09616).

Two views of one crop, aligned pixel by pixel: the student sees the weakly
augmented one with most patches masked, a momentum copy of it the strongly
augmented one, whole. At every masked position i of an image the student has
to tell which of the copy's L patch features of that same image (its
"dictionary") belongs to position i:

.. math::

    \mathcal{L} = \operatorname{mean}_{i\,\mathrm{masked}} -\log
        \frac{\exp(\langle f_i, g_i\rangle / \tau)}
             {\sum_{j=1}^{L} \exp(\langle f_i, g_j\rangle / \tau)}

with f and g the L2-normalised features of student and copy. After the
optimizer's step the copy moves a little towards the student.

Written for this project from the paper and from measurements. Unlike the
released code it takes any grid, and has no unused output layer.
"""

from __future__ import annotations

from functools import partial

import torch
from mmengine.model import BaseModule
from mmpretrain.models.necks import NonLinearNeck
from mmpretrain.structures import DataSample
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ...errors import InputError
from ...registry import MODELS
from ..layers.beit import BEiTStyleViT
from ..layers.momentum import MomentumCopy
from ..layers.patches import Size, grid_of
from ..layers.token_masks import check_mask_ratio, sample_cell_masks
from .base import SelfSupervisor, check_encoder, replayed

# Accumulating gradients over this many batches before a step is unheard of.
PATIENCE = 256


@MODELS.register_module()
class ConMIMViT(BEiTStyleViT):
    """Encoder of ConMIM: a BEiT-style ViT with a mask token.

    Without masks it is an ordinary backbone for classification, segmentation
    and detection. Arguments, weights' names and outputs are those of
    :class:`~ropim_mm.models.layers.BEiTStyleViT`. For pretraining:
    ``out_type='raw', final_norm=True, use_rel_pos_bias=False,
    use_shared_rel_pos_bias=True, with_mask_token=True, init_cutoff=0.02``.

    Args:
        with_mask_token: Have a token that stands for masked patches.
        **kwargs: See the base class.
    """

    def __init__(self, with_mask_token: bool = False, **kwargs) -> None:
        super().__init__(**kwargs)
        self.mask_token = None
        if with_mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, self.embed_dims))

    def init_encoder(self) -> None:
        """As the base class; the mask token is always cut at one std."""
        super().init_encoder()
        if self.mask_token is not None:
            nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)

    def hide(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Replace masked patch embeddings by the mask token.

        Args:
            tokens: (B, L, D).
            mask: bool (B, L), True for masked patches.

        Returns:
            (B, L, D)
        """
        token = self.mask_token.to(tokens.dtype)
        return torch.where(mask.unsqueeze(-1), token, tokens)


@MODELS.register_module()
class ConMIMNeck(NonLinearNeck):
    """Projector of ConMIM: three linear layers, each with a BatchNorm.

    linear-BN-ReLU, linear-BN-ReLU, linear-BN, the last one without scale and
    shift; no linear layer has a bias. Statistics are those of all tokens of
    all images of this process, the class tokens included. Names and layouts
    are those of MMPretrain's ``NonLinearNeck``: ``fc0``, ``bn0`` to ``bn2``.

    Args:
        in_channels: D, width of a token.
        hid_channels: Hidden width.
        out_channels: Width of the features.
        init_cfg: See MMEngine's ``BaseModule``. By default as the encoder:
            truncated normal, std 0.02, cut at one std.
    """

    def __init__(
        self,
        in_channels: int,
        hid_channels: int = 4096,
        out_channels: int = 256,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            hid_channels=hid_channels,
            out_channels=out_channels,
            num_layers=3,
            with_bias=False,
            with_last_bn=True,
            with_last_bn_affine=False,
            with_last_bias=False,
            with_avg_pool=False,
            norm_cfg=dict(type='BN1d'),
            init_cfg=init_cfg
            or dict(
                type='TruncNormal', layer='Linear', std=0.02, a=-0.02, b=0.02
            ),
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, D) -> features (B, N, out_channels)."""
        (features,) = super().forward((tokens.flatten(0, 1),))
        return features.view(*tokens.shape[:2], -1)


class _Discrimination(torch.autograd.Function):
    """Weighted cross entropy of each row of x y^T against its own position.

    One (B, L, L) tensor is alive in forward and backward, worked on in place.
    ``F.cross_entropy`` would keep the logits, their logarithms of
    probabilities and, going back, their gradient. It cannot be differentiated
    twice.
    """

    @staticmethod
    def forward(ctx, x, y, weight, temperature):
        logits = torch.bmm(x, y.transpose(1, 2)).div_(temperature)
        positive = logits.diagonal(dim1=1, dim2=2).clone()
        largest = logits.amax(dim=-1)
        terms = logits.sub_(largest.unsqueeze(-1)).exp_()
        total = terms.sum(dim=-1)
        ctx.save_for_backward(terms, total, y, weight)
        ctx.temperature = temperature
        return (weight * (total.log() + largest - positive)).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        terms, total, y, weight = ctx.saved_tensors
        rows = grad * weight / ctx.temperature
        grad_logits = terms.mul_((rows / total).unsqueeze(-1))
        grad_logits.diagonal(dim1=1, dim2=2).sub_(rows)
        return torch.bmm(grad_logits, y), None, None, None


@MODELS.register_module()
class ConMIMHead(BaseModule):
    """Loss of ConMIM: the dictionary of an image is its own patches.

    Args:
        temperature: tau, divides the cosine similarities.
        init_cfg: See MMEngine's ``BaseModule``.

    Raises:
        InputError: ``temperature`` is not positive.
    """

    def __init__(
        self, temperature: float = 0.1, init_cfg: dict | list | None = None
    ) -> None:
        super().__init__(init_cfg)
        if not temperature > 0:
            raise InputError(
                f'temperature is {temperature}; expected a positive number, '
                'such as 0.1'
            )
        self.temperature = temperature

    def loss(
        self, student: torch.Tensor, target: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Mean over all masked positions of the batch, a scalar, float32.

        Visible positions are keys only. An image with more masked patches
        weighs more.

        Args:
            student: (B, L, d), features of the student.
            target: (B, L, d), of the momentum copy; no gradient goes there.
            mask: bool (B, L), True for masked patches.
        """
        with torch.autocast(student.device.type, enabled=False):
            x = F.normalize(student.float(), dim=-1)
            y = F.normalize(target.detach().float(), dim=-1)
            weight = mask.float()
            weight = weight / weight.sum().clamp(min=1)
            return _Discrimination.apply(x, y, weight, self.temperature)


@MODELS.register_module()
class ConMIM(SelfSupervisor):
    """ConMIM pretraining.

    Inputs are two views, aligned pixel by pixel: ``[student, momentum]``.
    A data sample may carry ``mask``, bool (h, w), True for the patches that
    the student does not see. Where the samples have none, masks are drawn on
    the model's device: equally many random cells of patches in all images;
    where the cells do not divide the grid, those at the lower and right
    border are cut off.

    :meth:`update_momentum_copy` must be called after each step of the
    optimizer: ``ropim_mm.MomentumCopyHook`` does.

    Args:
        backbone: :class:`ConMIMViT` with ``out_type='raw'``,
            ``final_norm=True`` and ``with_mask_token=True``.
        neck: :class:`ConMIMNeck`.
        head: :class:`ConMIMHead`.
        mask_ratio: Share of masked cells, in (0, 1).
        mask_cell_size: Patches that are masked together, a side or (rows,
            columns).
        data_preprocessor: Default MMPretrain's ``SelfSupDataPreprocessor``.
        init_cfg: See MMEngine's ``BaseModule``.

    Raises:
        InputError: ``mask_ratio`` is outside (0, 1), or the backbone has
            another output than the last block's normalised tokens, or no
            mask token.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict,
        mask_ratio: float = 0.75,
        mask_cell_size: Size = 2,
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
        check_mask_ratio(mask_ratio)
        check_encoder(self.backbone, 'ConMIM', 'ropim_mm.ConMIMViT')
        self.mask_ratio = mask_ratio
        self.mask_cell_size = mask_cell_size
        self.momentum = MomentumCopy(backbone=self.backbone, neck=self.neck)
        self.steps_without_update = 0

    def loss(
        self,
        inputs: list[torch.Tensor],
        data_samples: list[DataSample] | None = None,
    ) -> dict[str, torch.Tensor]:
        """One training step's loss.

        Args:
            inputs: Two views, each (B, C, H, W), normalised: the student's
                and the momentum copy's.
            data_samples: B samples, with or without masks.

        Returns:
            ``dict(loss=scalar)``
        """
        weak, strong = self.views(inputs)
        mask = self.mask(weak, data_samples).flatten(1)
        self.count_step()
        hide = partial(self.backbone.hide, mask=mask)
        features = self.neck(self.backbone(weak, hide)[0])
        with torch.no_grad():
            targets = self.momentum.neck(self.momentum.backbone(strong)[0])
        # The class token only takes part in the projector's statistics.
        loss = self.head.loss(features[:, 1:], targets[:, 1:], mask)
        return dict(loss=loss)

    def update_momentum_copy(self, momentum: float) -> None:
        """Move the copy towards the student; after the optimizer's step.

        Args:
            momentum: m in copy = m * copy + (1 - m) * student, in [0, 1].
        """
        self.momentum.update(momentum)
        self.steps_without_update = 0

    def count_step(self) -> None:
        """Stop where nobody moves the momentum copy.

        Raises:
            InputError: It did not move for :data:`PATIENCE` training steps.
        """
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        self.steps_without_update += 1
        if self.steps_without_update > PATIENCE:
            raise InputError(
                f'the momentum copy of ConMIM did not move for {PATIENCE} '
                'training steps: its targets stay those of random weights. '
                "Add dict(type='ropim_mm.MomentumCopyHook') to custom_hooks "
                'of the config (a list there replaces the one of _base_), or '
                'call model.update_momentum_copy(momentum) after each step of '
                'the optimizer'
            )

    def extract_feat(
        self, inputs: torch.Tensor | list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Tokens of whole images: of one view, or of the first of two."""
        return self.backbone(
            inputs if isinstance(inputs, torch.Tensor) else inputs[0]
        )

    def views(
        self, inputs: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The two views, checked.

        Raises:
            InputError: There are not two of equal shape.
        """
        if isinstance(inputs, torch.Tensor) or len(inputs) != 2:
            found = (
                f'one tensor of shape {tuple(inputs.shape)}'
                if isinstance(inputs, torch.Tensor)
                else f'{len(inputs)} views'
            )
            raise InputError(
                f'inputs of ConMIM are {found}; expected [student view, '
                'momentum view], each (B, C, H, W): use ropim_mm.TwoViews in '
                'the pipeline'
            )
        weak, strong = inputs
        if weak.shape != strong.shape:
            raise InputError(
                f'the two views have shapes {tuple(weak.shape)} and '
                f'{tuple(strong.shape)}; expected equal ones, aligned pixel '
                'by pixel'
            )
        return weak, strong

    def mask(
        self, inputs: torch.Tensor, data_samples: list[DataSample] | None
    ) -> torch.Tensor:
        """The data samples' masks, or new ones.

        Args:
            inputs: (B, C, H, W).
            data_samples: B samples.

        Returns:
            bool (B, h, w)

        Raises:
            InputError: Only some samples carry a mask, or one is of another
                shape.
        """
        batch = inputs.shape[0]
        grid = grid_of(tuple(inputs.shape[2:]), self.backbone.patch_size)
        given = replayed(
            data_samples,
            'mask',
            batch,
            grid,
            f'one entry a patch of images of {tuple(inputs.shape[2:])}',
        )
        if given is not None:
            return given.to(inputs.device, torch.bool)
        return sample_cell_masks(
            batch, grid, self.mask_ratio, self.mask_cell_size, inputs.device
        )
