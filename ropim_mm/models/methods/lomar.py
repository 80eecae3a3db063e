r"""LoMaR: Efficient Self-supervised Vision Pretraining with Local Masked
Reconstruction.

Chen, Hu, Li and Elhoseiny, 2022 (arXiv 2206.00790).

A few windows of w x w patches are cut out of an image. In each most patches
are hidden behind a learned token, and the encoder, which sees one window at a
time, rebuilds them from the few that are left; a single linear layer stands
in for a decoder:

.. math::

    \mathcal{L} = \operatorname{mean}_{i\,\mathrm{masked}}
        \frac{1}{d} \left\| \mathrm{pred}_i - \mathrm{target}_i \right\|^2

with the mean over all masked patches of all windows and d the values of a
patch. There are no absolute positions: iRPE tells the encoder where tokens
lie relative to each other, with the same tables in a window and in an image.

Written for this project from the paper and from measurements. In the released
code the order of its rows pairs only some images with some windows (at 256
images and 4 windows a quarter of all pairs, each four times); here every image
meets every window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from mmengine.model import BaseModule
from mmpretrain.structures import DataSample
from torch import nn
from torch.nn import functional as F

from ...errors import InputError
from ...registry import MODELS
from ..layers.irpe import ALPHA, BETA, GAMMA, IRPEAttention
from ..layers.patches import Size, grid_of, normalize_patches, to_pair
from ..layers.tokens import embed_patches, take_patches, take_tokens
from ..layers.vit import ViTBackbone
from ..layers.windows import free_positions, sample_windows, window_patches
from .base import SelfSupervisor, check_encoder, replayed


@MODELS.register_module()
class LoMaRViT(ViTBackbone):
    """Encoder of LoMaR: a ViT with iRPE on keys and no absolute positions.

    Without windows it is an ordinary backbone for classification,
    segmentation and detection, at any image size with the same weights. For
    pretraining: ``out_type='raw', final_norm=True, with_mask_token=True``.

    Args:
        arch: As the base class; also 'huge', whose patches are of 14 pixels
            in the release.
        out_type: See the base class.
        final_norm: Normalise the last block's output (pretraining, and where
            the class token is classified).
        with_mask_token: Have a token that stands for masked patches.
        alpha, beta, gamma: Of iRPE, see
            :func:`ropim_mm.models.layers.irpe.piecewise_index`.
        **kwargs: See :class:`~ropim_mm.models.layers.ViTBackbone`.
    """

    arch_zoo = ViTBackbone.arch_zoo | {'huge': (1280, 32, 16, 5120)}
    resizes_positions = False

    def __init__(
        self,
        arch: str | dict = 'base',
        out_type: str = 'avg_featmap',
        final_norm: bool = False,
        with_mask_token: bool = False,
        alpha: float = ALPHA,
        beta: float = BETA,
        gamma: float = GAMMA,
        **kwargs,
    ) -> None:
        super().__init__(
            arch=arch, out_type=out_type, final_norm=final_norm, **kwargs
        )
        self.irpe = dict(alpha=alpha, beta=beta, gamma=gamma)
        self.mask_token = None
        if with_mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, self.embed_dims))
        self.build_layers()

    def make_attention(self, index: int) -> nn.Module:
        """Self-attention with a table of its own."""
        return IRPEAttention(
            self.embed_dims,
            self.num_heads,
            self.qkv_bias,
            self.attn_drop_rate,
            self.drop_rate,
            **self.irpe,
        )

    def context(self, grid: tuple[int, int]) -> tuple:
        """The table columns of all pairs of tokens, the same in all blocks."""
        table = self.layers[0].attn.rpe_k
        return (table.index(grid, self.cls_token.device),)

    def init_encoder(self) -> None:
        """As released: Xavier, tokens normal with std 0.02, tables 0.

        The bias of the patch embedding keeps PyTorch's default.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # None where a stem has taken the place of the patch embedding.
        for module in self.patch_embed.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1))
        for token in (self.cls_token, self.mask_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)

    def hide(self, patches: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What the encoder is shown of windows.

        Args:
            patches: (R, P, C * ph * pw).
            mask: bool (R, P), True for masked patches.

        Returns:
            (R, 1 + P, D): class token, then patch embeddings or mask tokens.
        """
        tokens = embed_patches(self.patch_embed, patches)
        x = torch.where(mask.unsqueeze(-1), self.mask_token, tokens)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1)
        return self.drop_after_pos(x)

    def encode_masked(
        self,
        shown: torch.Tensor,
        visible: torch.Tensor,
        masked: torch.Tensor,
        grid: tuple[int, int],
    ) -> torch.Tensor:
        """Encoded masked positions of windows that all hide equally many.

        The same numbers as :meth:`hide` and :meth:`encode` give, without the
        work that leads to none: masked patches are not embedded; before they
        have met any other, all mask tokens are one and the same, and so are
        their queries, keys and values in the first block; and after the last
        attention only masked positions are needed.

        Args:
            shown: (R, V, C * ph * pw), the visible patches.
            visible: int64 (R, V), their positions in the window.
            masked: int64 (R, K), those of the masked ones, K + V = h * w.
            grid: (h, w) of a window.

        Returns:
            (R, K, D), after the final norm, in the order of ``masked``.
        """
        rows, hidden = len(shown), grid[0] * grid[1]
        places = (visible + 1).unsqueeze(-1)

        def spread(distinct: torch.Tensor) -> torch.Tensor:
            # As hide() does: shown ones at their positions, else the mask.
            cls, mask, shown = distinct.split((1, 1, len(distinct) - 2))
            x = torch.cat((cls, mask.expand(hidden, -1))).expand(rows, -1, -1)
            shown = shown.unflatten(0, visible.shape)
            return x.scatter(1, places.expand_as(shown), shown)

        tokens = embed_patches(self.patch_embed, shown).flatten(0, 1)
        distinct = torch.cat((self.cls_token[0], self.mask_token[0], tokens))
        x = spread(distinct)
        context = self.context(grid)
        first = self.layers[0]
        qkv = spread(first.attn.qkv_of(first.ln1(distinct)))

        def block(
            index: int, x: torch.Tensor, qkv: torch.Tensor | None
        ) -> torch.Tensor:
            layer = self.layers[index]
            if qkv is None:
                qkv = layer.attn.qkv_of(layer.ln1(x))
            mixed = layer.attn.weigh(qkv, *context)
            if index == self.num_layers - 1:
                x = take_tokens(x, masked + 1)
                mixed = take_tokens(mixed, masked + 1)
            return layer.finish(x, layer.attn.output(mixed))

        for i in range(self.num_layers):
            x = self._run(block, i, x, None if i else qkv)
        return self.ln1(x)


@MODELS.register_module()
class LoMaRNeck(BaseModule):
    """Decoder of LoMaR: one linear map from a token to its patch's pixels.

    Args:
        embed_dims: D, width of a token.
        patch_size: Side or (height, width) of a patch.
        out_channels: C, channels of the image.
        init_cfg: See MMEngine's ``BaseModule``. By default as released:
            Xavier, bias 0.
    """

    def __init__(
        self,
        embed_dims: int,
        patch_size: Size = 16,
        out_channels: int = 3,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(
            init_cfg
            or dict(type='Xavier', layer='Linear', distribution='uniform')
        )
        ph, pw = to_pair(patch_size)
        self.pred = nn.Linear(embed_dims, ph * pw * out_channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (..., D) -> patches (..., ph * pw * C), values ordered
        (row, column, channel)."""
        return self.pred(tokens)


@MODELS.register_module()
class LoMaRHead(BaseModule):
    """Loss of LoMaR: mean squared error of masked patches.

    Args:
        norm_pix: Ask for patches of mean 0 and variance 1 instead of raw
            pixels.
        init_cfg: See MMEngine's ``BaseModule``.
    """

    def __init__(
        self, norm_pix: bool = True, init_cfg: dict | list | None = None
    ) -> None:
        super().__init__(init_cfg)
        self.norm_pix = norm_pix

    def target(self, patches: torch.Tensor) -> torch.Tensor:
        """What is asked for, float32, same shape: the patches themselves,
        normalised if so configured."""
        return normalize_patches(patches) if self.norm_pix else patches.float()

    def to_pixels(
        self, pred: torch.Tensor, patches: torch.Tensor
    ) -> torch.Tensor:
        """Predictions as pixels; the inverse of the normalisation.

        Args:
            pred: (..., ph * pw * C).
            patches: (..., ph * pw * C), those that were to be predicted: of
                normalised patches, mean and variance are theirs.

        Returns:
            (..., ph * pw * C), float32.
        """
        if not self.norm_pix:
            return pred.float()
        variance, mean = torch.var_mean(patches.float(), dim=-1, keepdim=True)
        return pred.float() * (variance + 1e-6).sqrt() + mean

    def loss(
        self,
        pred: torch.Tensor,
        patches: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mean squared error, a scalar in float32.

        Args:
            pred: (R, N, ph * pw * C).
            patches: (R, N, ph * pw * C), values ordered as the predictions':
                (row, column, channel).
            mask: bool (R, N), which positions count; all if None.
        """
        target = self.target(patches)
        if mask is None:
            return F.mse_loss(pred.float(), target)
        error = (pred.float() - target).square().mean(dim=-1)
        # None masked at all: a loss of 0, not of nan.
        return (error * mask).sum() / mask.sum().clamp(min=1)


@dataclass(frozen=True)
class WindowPrediction:
    """What :meth:`LoMaR.reconstruct` finds; R = B * M rows, P = w * w.

    Attributes:
        ids: int64 (B, M, P), patches of each window, row-major over the grid.
        mask: bool (R, P), True = masked, row-major inside the window.
        patches: (R, P, ph * pw * C), what was to be predicted, before any
            normalisation, ordered (row, column, channel).
        pred: (R, P, ph * pw * C).
        encoder_input: (R, 1 + P, D), input of the first block.
        encoder_tokens: (R, 1 + P, D), after the final norm.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    patches: torch.Tensor
    pred: torch.Tensor
    encoder_input: torch.Tensor
    encoder_tokens: torch.Tensor


@MODELS.register_module()
class LoMaR(SelfSupervisor):
    """LoMaR pretraining.

    Rows are image by image: row r is window r % M of image r // M. A data
    sample may carry its windows, ``window_tops`` and ``window_lefts`` int64
    (M,), the first row and column of patches of each, and ``window_mask``
    bool (M, w * w), True = masked, row-major inside the window. Where the
    samples have none, they are drawn on the model's device.

    Args:
        backbone: :class:`LoMaRViT` with ``out_type='raw'``,
            ``final_norm=True`` and ``with_mask_token=True``.
        neck: :class:`LoMaRNeck`.
        head: :class:`LoMaRHead`.
        window_size: w, side of a window in patches.
        num_windows: M, windows of an image.
        mask_ratio: Share of a window's patches that is masked, in (0, 1):
            int(w * w * ratio) patches.
        window_sampling: 'batch' (all images of a batch have the same windows,
            as released) or 'image' (each its own).
        window_replacement: Let windows of an image share rows and columns.
        data_preprocessor: Default MMPretrain's ``SelfSupDataPreprocessor``.
        init_cfg: See MMEngine's ``BaseModule``.

    Raises:
        InputError: The backbone has another output than the last block's
            normalised tokens, or no mask token; the neck predicts patches of
            another size; or a number makes no sense.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict,
        window_size: int = 7,
        num_windows: int = 4,
        mask_ratio: float = 0.8,
        window_sampling: str = 'batch',
        window_replacement: bool = False,
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
        check_encoder(self.backbone, 'LoMaR', 'ropim_mm.LoMaRViT')
        self._check_neck()
        if not 0.0 < mask_ratio < 1.0:
            raise InputError(
                f'mask_ratio is {mask_ratio}; expected a number strictly '
                "between 0 and 1: the share of a window's patches to mask"
            )
        if window_sampling not in ('batch', 'image'):
            raise InputError(
                f"window_sampling is {window_sampling!r}; expected 'batch' "
                "(all images have the same windows) or 'image'"
            )
        if num_windows < 1 or window_size < 1:
            raise InputError(
                f'num_windows is {num_windows} and window_size {window_size}; '
                'expected at least 1'
            )
        self.window_size = window_size
        self.num_windows = num_windows
        self.mask_ratio = mask_ratio
        self.num_masked = int(window_size**2 * mask_ratio)
        if not self.num_masked:
            raise InputError(
                f'mask_ratio {mask_ratio} of the {window_size**2} patches of '
                f'a window (window_size {window_size}) masks none: there is '
                'nothing to learn. Use a larger ratio or larger windows.'
            )
        self.window_sampling = window_sampling
        self.window_replacement = window_replacement

    def _check_neck(self) -> None:
        (ph, pw), embed = self.backbone.patch_size, self.backbone.patch_embed
        values = embed.in_channels * ph * pw
        found = self.neck.pred.out_features
        if found != values:
            raise InputError(
                f'model.neck predicts {found} values a patch; expected '
                f"{values}, those of the backbone's patches of {ph}x{pw} "
                f'pixels with {embed.in_channels} channels. Set `patch_size` '
                'and `out_channels` of the neck to `patch_size` and '
                '`in_channels` of the backbone.'
            )

    def loss(
        self,
        inputs: torch.Tensor,
        data_samples: list[DataSample] | None = None,
    ) -> dict[str, torch.Tensor]:
        """One training step's loss.

        Args:
            inputs: (B, C, H, W), normalised images.
            data_samples: B samples, with or without windows and masks.

        Returns:
            ``dict(loss=scalar)``
        """
        ids = self.windows(inputs, data_samples)
        positions = self.positions(ids, data_samples)
        if positions is None or (self.training and self.backbone.drop_rate):
            seen = self.reconstruct(inputs, data_samples, ids)
            loss = self.head.loss(seen.pred, seen.patches, seen.mask)
            return dict(loss=loss)
        masked, visible = positions
        shown = self.patches(inputs, ids, visible)
        tokens = self.backbone.encode_masked(
            shown, visible, masked, self.window_grid
        )
        target = self.patches(inputs, ids, masked, channels_last=True)
        return dict(loss=self.head.loss(self.neck(tokens), target))

    def reconstruct(
        self,
        inputs: torch.Tensor,
        data_samples: list[DataSample] | None = None,
        ids: torch.Tensor | None = None,
    ) -> WindowPrediction:
        """Predictions for all patches of all windows, visible ones too.

        Args:
            inputs: (B, C, H, W).
            data_samples: B samples, with or without windows and masks.
            ids: (B, M, P), the windows' patches, if they are known already.
        """
        if ids is None:
            ids = self.windows(inputs, data_samples)
        mask = self.mask(ids, data_samples)
        x = self.backbone.hide(self.patches(inputs, ids), mask)
        (tokens,) = self.backbone.encode(
            x, self.window_grid, *self.backbone.context(self.window_grid)
        )
        return WindowPrediction(
            ids=ids,
            mask=mask,
            patches=self.patches(inputs, ids, channels_last=True),
            pred=self.neck(tokens[:, 1:]),
            encoder_input=x,
            encoder_tokens=tokens,
        )

    def patches(
        self,
        inputs: torch.Tensor,
        ids: torch.Tensor,
        positions: torch.Tensor | None = None,
        channels_last: bool = False,
    ) -> torch.Tensor:
        """Patches of windows, copied straight from the images.

        Args:
            inputs: (B, C, H, W).
            ids: int64 (B, M, P), the windows' patches.
            positions: int64 (R, N), which of them; all if None.
            channels_last: Order of a patch's values, see ``patchify``.

        Returns:
            (R, N, C * ph * pw)
        """
        rows = ids.flatten(0, 1)
        if positions is not None:
            rows = rows.gather(1, positions)
        taken = take_patches(
            inputs,
            rows.reshape(len(inputs), -1),
            self.backbone.patch_size,
            channels_last,
        )
        return taken.reshape(*rows.shape, taken.shape[-1])

    # -- what is random ---------------------------------------------------

    def windows(
        self, inputs: torch.Tensor, data_samples: list[DataSample] | None
    ) -> torch.Tensor:
        """The patches of the data samples' windows, or of new ones.

        Returns:
            int64 (B, M, P), row-major over the grid.
        """
        embed = self.backbone.patch_embed
        if not isinstance(inputs, torch.Tensor):
            raise InputError(
                f'inputs of LoMaR are a {type(inputs).__name__} of '
                f'{len(inputs)}; expected one tensor (B, '
                f'{embed.in_channels}, H, W), from a pipeline with one view '
                'an image'
            )
        if inputs.ndim != 4 or inputs.shape[1] != embed.in_channels:
            raise InputError(
                f'inputs have shape {tuple(inputs.shape)}; expected '
                f'(B, {embed.in_channels}, H, W). Set `in_channels` of the '
                'backbone and `out_channels` of the neck to the number of '
                'channels of the images.'
            )
        batch = len(inputs)
        grid = grid_of(tuple(inputs.shape[2:]), embed.patch_size)
        tops = replayed(data_samples, 'window_tops', batch)
        lefts = replayed(data_samples, 'window_lefts', batch)
        if (tops is None) != (lefts is None):
            lost = 'window_tops' if tops is None else 'window_lefts'
            raise InputError(
                f'the data samples carry no `{lost}`; expected both '
                '`window_tops` and `window_lefts`, or neither'
            )
        if tops is None:
            tops, lefts = sample_windows(
                grid,
                self.window_size,
                self.num_windows,
                batch if self.window_sampling == 'image' else 1,
                self.window_replacement,
                inputs.device,
            )
            tops, lefts = tops.expand(batch, -1), lefts.expand(batch, -1)
        else:
            _check_windows(tops, lefts, grid, self.window_size)
            tops = tops.to(inputs.device, torch.int64)
            lefts = lefts.to(inputs.device, torch.int64)
        return window_patches(tops, lefts, self.window_size, grid)

    def positions(
        self, ids: torch.Tensor, data_samples: list[DataSample] | None
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Masked and visible positions of windows that mask equally many.

        Args:
            ids: int64 (B, M, P), the windows' patches.
            data_samples: B samples, with or without masks.

        Returns:
            int64 (R, K) and (R, P - K); None where the samples' masks differ
            in K, or where K lies on a device that would have to be waited
            for.
        """
        mask = self._given_mask(ids, data_samples)
        if mask is None:
            noise = torch.rand(
                ids.shape[0] * ids.shape[1], ids.shape[2], device=ids.device
            )
            order = noise.argsort(dim=1)
            return order[:, : self.num_masked], order[:, self.num_masked :]
        if not _readable(mask):
            return None
        counts = mask.sum(dim=1)
        count = int(counts[0])
        if not count or bool((counts != count).any()):
            return None
        order = mask.byte().argsort(dim=1, descending=True, stable=True)
        order = order.to(ids.device)
        return order[:, :count], order[:, count:]

    def mask(
        self, ids: torch.Tensor, data_samples: list[DataSample] | None
    ) -> torch.Tensor:
        """The data samples' masks, or new ones: bool (R, P)."""
        given = self._given_mask(ids, data_samples)
        if given is not None:
            return given.to(ids.device)
        masked, _ = self.positions(ids, None)
        mask = torch.zeros(
            len(masked), ids.shape[2], dtype=torch.bool, device=ids.device
        )
        return mask.scatter_(1, masked, True)

    def _given_mask(
        self, ids: torch.Tensor, data_samples: list[DataSample] | None
    ) -> torch.Tensor | None:
        mask = replayed(data_samples, 'window_mask', len(ids))
        if mask is None:
            return None
        if mask.shape[1:] != ids.shape[1:]:
            raise InputError(
                f'`window_mask` has shape {tuple(mask.shape[1:])}; expected '
                f'{tuple(ids.shape[1:])}: windows of an image, patches of a '
                f'window (window_size {self.window_size})'
            )
        if mask.dtype != torch.bool:
            raise InputError(
                f'`window_mask` is of type {mask.dtype}; expected torch.bool, '
                'True for masked patches'
            )
        return mask.flatten(0, 1)

    @property
    def window_grid(self) -> tuple[int, int]:
        """Patches (rows, columns) of a window."""
        return (self.window_size, self.window_size)


def _readable(values: torch.Tensor) -> bool:
    """Whether values can be looked at without waiting for a device."""
    return values.device.type == 'cpu' and not torch.compiler.is_compiling()


def _check_windows(
    tops: torch.Tensor,
    lefts: torch.Tensor,
    grid: tuple[int, int],
    window: int,
) -> None:
    free = free_positions(grid, window)
    if tops.ndim != 2 or tops.shape != lefts.shape:
        raise InputError(
            f'`window_tops` has shape {tuple(tops.shape[1:])} and '
            f'`window_lefts` {tuple(lefts.shape[1:])}; expected (M,) both, '
            'one entry a window'
        )
    for name, values, positions in (
        ('window_tops', tops, free[0]),
        ('window_lefts', lefts, free[1]),
    ):
        if _readable(values) and values.numel():
            low, high = int(values.min()), int(values.max())
            if low < 0 or high >= positions:
                raise InputError(
                    f'`{name}` holds values from {low} to {high}; windows of '
                    f'{window}x{window} patches in a grid of '
                    f'{grid[0]}x{grid[1]} begin at 0 to {positions - 1}'
                )
