"""MIMDet: a detector whose encoder sees a random part of the image.

Fang, Yang, Wang, Ge, Shan and Wang, "Unleashing Vanilla Vision Transformer
with Masked Image Modeling for Object Detection", ICCV 2023 (arXiv
2204.02964).

An encoder that learned from masked images can go on with a sample of the
tokens: half the work in training, or a quarter. A convolutional stem takes
the place of the patch embedding; its coarsest map is what the encoder sees a
part of, its finer ones are levels of the pyramid that the encoder need not
make. A decoder as MAE's completes the map. Where the encoder saw nothing it
starts from what the stem saw there, instead of a mask token.

Written for this project from the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from mmengine.model import BaseModule
from mmpretrain.models.utils import build_norm_layer
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ropim_mm.checkpoints import PretrainedMixin
from ropim_mm.checkpoints.coverage import CoverageReport
from ropim_mm.errors import InputError
from ropim_mm.registry import MODELS

from ..layers.attention import SelfAttention
from ..layers.block import Block
from ..layers.positions import sincos_positions
from ..layers.vit import ViTBackbone, as_map
from ..methods.rmae import NORM, init_as_mae
from .scattered import Places, encode_scattered, hiding

if TYPE_CHECKING:
    from mmdet.structures import DetDataSample

# Of the stem's last map, and of what sides of a batch must be multiples of.
STRIDE = 16
DIVISOR = 32


class ConvStem(nn.Module):
    """Four 3x3 convolutions of stride 2, and a linear map to tokens.

    Each convolution is followed by a LayerNorm over channels and GELU. Widths
    are 1/8, 1/4, 1/2 of a token's and all of it.

    Args:
        in_channels: Of the images.
        embed_dims: D, width of a token, a multiple of 8.

    Raises:
        InputError: ``embed_dims`` is not.
    """

    def __init__(self, in_channels: int, embed_dims: int) -> None:
        super().__init__()
        if embed_dims % 8:
            raise InputError(
                f'embed_dims of the encoder is {embed_dims}; expected a '
                'multiple of 8: the first convolution of the stem has an '
                'eighth of it'
            )
        self.in_channels = in_channels
        self.widths = tuple(embed_dims // n for n in (8, 4, 2, 1))
        self.convs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False),
                build_norm_layer(dict(type='LN2d', eps=1e-6), width),
                nn.GELU(),
            )
            for before, width in pairwise((in_channels, *self.widths))
        )
        self.projection = nn.Conv2d(embed_dims, embed_dims, 1)

    def forward(
        self, images: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Maps of strides 4, 8 and 16; the last one is the tokens.

        Args:
            images: (B, C, H, W), H and W multiples of 32.

        Returns:
            (B, D/4, H/4, W/4), (B, D/2, H/8, W/8), (B, D, H/16, W/16)

        Raises:
            InputError: The images have another shape.
        """
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[1] != self.in_channels:
            raise InputError(
                f'inputs have shape {shape}; expected (B, '
                f'{self.in_channels}, H, W). Set `in_channels` of the '
                'backbone to the number of channels of the images.'
            )
        if shape[2] % DIVISOR or shape[3] % DIVISOR:
            raise InputError(
                f'inputs are of {shape[2]}x{shape[3]} (height x width); '
                f'expected multiples of {DIVISOR}, the stride of the last '
                'level. Set model.data_preprocessor.pad_size_divisor='
                f'{DIVISOR}.'
            )
        maps = []
        x = images
        for conv in self.convs:
            x = conv(x)
            maps.append(x)
        return maps[1], maps[2], self.projection(x)


class MaskedAttention(SelfAttention):
    """Self-attention that may be kept from looking at some tokens."""

    def forward(
        self, tokens: torch.Tensor, hide: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, N, D) -> (B, N, D)

        Args:
            hide: Added to logits, (B, 1, 1, N); None for nothing.
        """
        return self.mix(self.project(tokens), hide)


class MapDecoder(nn.Module):
    """A whole map from some encoded tokens (after MAE's decoder).

    Args:
        embed_dims: Width of the encoder's and the stem's tokens.
        dims: D, width of the map, a multiple of 4.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLPs over D.
        with_cp: Activation checkpointing.

    Raises:
        InputError: ``dims`` is no multiple of 4 or of ``num_heads``.
    """

    def __init__(
        self,
        embed_dims: int,
        dims: int = 512,
        depth: int = 4,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        sincos_positions((1, 1), dims)  # refuses other widths
        self.dims = dims
        self.embed = nn.Linear(embed_dims, dims)
        self.fill = nn.Linear(embed_dims, dims)
        self.blocks = nn.ModuleList(
            Block(
                dims,
                MaskedAttention(dims, num_heads),
                int(dims * mlp_ratio),
                NORM,
            )
            for _ in range(depth)
        )
        self.norm = build_norm_layer(NORM, dims)

    def forward(
        self,
        latent: torch.Tensor,
        stem: torch.Tensor,
        places: Places,
        inside: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Complete the map.

        Args:
            latent: (B, 1 + K, embed_dims), of the encoder: class token, then
                the tokens of ``places``.
            stem: (B, h * w, embed_dims), tokens of the stem, row-major.
            places: Which tokens the encoder saw.
            inside: bool (B, h * w), False for padding, which is not looked
                at; None if there is none.

        Returns:
            (B, D, h, w)
        """
        x = self.assemble(latent, stem, places)
        hide = None if inside is None else hiding(inside, x.dtype)
        again = self.with_cp and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            if again:
                x = checkpoint(block, x, hide, use_reentrant=False)
            else:
                x = block(x, hide)
        return as_map(self.norm(x)[:, 1:], places.grid)

    def assemble(
        self, latent: torch.Tensor, stem: torch.Tensor, places: Places
    ) -> torch.Tensor:
        """Class token and map, with positions: what the blocks are given.

        Arguments as above.

        Returns:
            (B, 1 + h * w, D)
        """
        length = stem.shape[1]
        x = self.embed(latent)
        if places.ids is not None:
            first, seen, ids = x[:, :1], x[:, 1:], places.ids
            if places.alive is not None:
                # Empty slots go to a place of their own, cut off again.
                ids = torch.where(places.alive, ids, length)
            ids = ids.unsqueeze(-1).expand_as(seen)
            filled = F.pad(self.fill(stem), (0, 0, 0, 1))
            x = filled.scatter(1, ids, seen)[:, :length]
            x = torch.cat((first, x), dim=1)
        return x + self.positions(places.grid, x)

    def positions(
        self, grid: tuple[int, int], like: torch.Tensor
    ) -> torch.Tensor:
        """Sines and cosines of a grid, zeros for the class token.

        As :func:`~ropim_mm.models.layers.positions.sincos_positions` gives
        them, put together on the device from those of a row and a column:
        each batch has a grid of its own.

        Args:
            grid: (h, w).
            like: Says the device, and the type where it is wider than that.

        Returns:
            (1, 1 + h * w, D), float32 or wider: so are the sums of the blocks
            then, under autocast too.
        """
        kind = torch.promote_types(like.dtype, torch.float32)
        half = self.dims // 2
        column = sincos_positions((grid[0], 1), self.dims)[0, 1:, half:]
        row = sincos_positions((1, grid[1]), self.dims)[0, 1:, :half]
        row, column = (c.to(like.device, kind) for c in (row, column))
        cells = torch.cat(
            (
                row.expand(grid[0], -1, -1),
                column[:, None].expand(-1, grid[1], -1),
            ),
            dim=2,
        )
        return F.pad(cells.flatten(0, 1), (0, 0, 1, 0)).unsqueeze(0)


@MODELS.register_module()
class MIMDet(PretrainedMixin, BaseModule):
    """Backbone of MMDetection: stem, sampled encoder, decoder.

    In training the encoder sees ``int(sample_ratio * n)`` random ones of the
    n tokens of an image that are not all padding, in evaluation all of these.
    Images of a batch differ in n: slots that are left empty are kept out of
    attention. Which tokens are padding, ``img_shape`` of the data samples
    says; without samples there is none. What a sample brings as
    ``visible_ids`` (int64 (K,), row-major over the grid of the padded batch)
    is seen instead, in both modes.

    The encoder keeps its class token, which it had in pretraining too, where
    it also saw a part of the tokens. The decoder is given it as well, as
    MAE's is, and it leaves with the decoder.

    Position tables of the encoder (relative or absolute) are resized to the
    grid of the padded batch, in every step: they stay those of pretraining.

    ``init_cfg`` of this module loads the encoder, as ``init_cfg`` of the
    encoder does. The patch embedding of the checkpoint has no use here, and
    the report says so. Images have tokens of 16 pixels whatever the
    ``patch_size`` of the encoder, with which its tables are made.

    Args:
        encoder: Config of the encoder, one of the four methods', with
            ``out_type='raw'`` and without ``window_size``.
        sample_ratio: Part of the tokens that the encoder sees in training,
            in (0, 1].
        in_channels: Of the images.
        decoder_dims: Width of the decoder, a multiple of 4.
        decoder_depth: Blocks of the decoder.
        decoder_heads: Attention heads of the decoder.
        with_cp: Activation checkpointing, in decoder and encoder: keep only
            the inputs of blocks in training.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE,
            prefix='backbone.')`` of a pretraining; of ConMIM, whose momentum
            copy is the better encoder, ``prefix='momentum.backbone.'``.

    Attributes:
        out_channels: Of the four levels, for the neck.

    Raises:
        InputError: An argument is not as above.
    """

    def __init__(
        self,
        encoder: dict,
        sample_ratio: float = 0.5,
        in_channels: int = 3,
        decoder_dims: int = 512,
        decoder_depth: int = 4,
        decoder_heads: int = 16,
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if not 0 < sample_ratio <= 1:
            raise InputError(
                f'backbone.sample_ratio is {sample_ratio}; expected a number '
                'in (0, 1]: the part of the tokens that the encoder sees in '
                'training'
            )
        if decoder_depth < 1:
            raise InputError(
                f'backbone.decoder_depth is {decoder_depth}; expected at '
                'least 1 block'
            )
        self.sample_ratio = sample_ratio
        self.encoder = MODELS.build(encoder)
        self._check_encoder()
        self.encoder.with_cp |= with_cp
        # An encoder of its own kind in all but this. Sizes differ from batch
        # to batch, of which it need not warn.
        self.encoder.patch_embed = nn.Identity()
        self.encoder.pretraining_only_keys = (
            *self.encoder.pretraining_only_keys,
            'patch_embed',
        )
        self.encoder.warned_of_resizing = True
        width = self.encoder.embed_dims
        self.stem = ConvStem(in_channels, width)
        self.decoder = MapDecoder(
            width,
            decoder_dims,
            decoder_depth,
            decoder_heads,
            with_cp=with_cp,
        )
        self.out_channels = (*self.stem.widths[1:3], *(decoder_dims,) * 2)

    def _check_encoder(self) -> None:
        encoder = self.encoder
        if not isinstance(encoder, ViTBackbone):
            raise InputError(
                f'backbone.encoder is a {type(encoder).__name__}; expected '
                'ropim_mm.ROPIMViT, LoMaRViT, RMAEViT or ConMIMViT'
            )
        last = (encoder.num_layers - 1,)
        if encoder.out_type != 'raw' or encoder.out_indices != last:
            raise InputError(
                f'backbone.encoder has out_type {encoder.out_type!r} and '
                f'out_indices {encoder.out_indices}; expected '
                f"out_type='raw' and the last block, {last}: the decoder "
                'takes all tokens'
            )
        # Windows cannot be asked for with 'raw'.

    @property
    def num_layers(self) -> int:
        """Blocks of the encoder."""
        return self.encoder.num_layers

    def init_weights(self) -> None:
        """Xavier in stem and decoder, as MAE; the encoder its own way."""
        if not self.is_init:
            with torch.no_grad():
                init_as_mae(self.stem)
                init_as_mae(self.decoder)
        super().init_weights()

    def _load_pretrained(self, *args, **kwargs) -> CoverageReport:
        return self.encoder._load_pretrained(*args, **kwargs)

    def get_layer_depth(
        self, param_name: str, prefix: str = ''
    ) -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning rate decay.

        Parameters of the encoder have their depths there. All others start
        at random and have the last depth, those of the stem too.

        Returns:
            (depth, number of depths), the latter ``num_layers + 2``.
        """
        return self.encoder.get_layer_depth(param_name, f'{prefix}encoder.')

    def forward(
        self,
        images: torch.Tensor,
        data_samples: Sequence[DetDataSample] | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Make the levels.

        Args:
            images: (B, C, H, W), normalised, padded below and to the right;
                H and W multiples of 32.
            data_samples: B, with ``img_shape``; None if nothing is padding.

        Returns:
            Maps of strides 4, 8, 16 and 32 with ``out_channels`` channels.

        Raises:
            InputError: Images or samples are not as above.
        """
        fine, middle, coarse = self.stem(images)
        grid = tuple(coarse.shape[-2:])
        tokens = coarse.flatten(2).transpose(1, 2)
        extents = _extents(data_samples, images)
        inside = _inside(extents, grid, images.device)
        places = self.places(tokens, grid, extents, inside, data_samples)
        latent = encode_scattered(self.encoder, places.take(tokens), places)
        last = self.decoder(latent, tokens, places, inside)
        return fine, middle, last, F.max_pool2d(last, 2)

    def places(
        self,
        tokens: torch.Tensor,
        grid: tuple[int, int],
        extents: Sequence[tuple[int, int]],
        inside: torch.Tensor | None,
        data_samples: Sequence[DetDataSample] | None,
    ) -> Places:
        """Which tokens the encoder is to see.

        Args:
            tokens: (B, h * w, D), read for device and shape.
            grid: (h, w) of the batch.
            extents: Rows and columns of each image's own tokens.
            inside: bool (B, h * w) of these; None if there is no padding.
            data_samples: May hold ``visible_ids``.

        Raises:
            InputError: ``visible_ids`` are not on all samples, or not a list
                of at least one.
        """
        batch, length = tokens.shape[:2]
        device = tokens.device
        given = _given(data_samples, batch)
        if given is not None:
            ids = nn.utils.rnn.pad_sequence(given, batch_first=True)
            ids, counts = ids.to(device), [len(each) for each in given]
        elif self.training:
            # All of them too, where that is the ratio: every step then uses
            # every parameter, as distributed training wants.
            counts = [
                max(1, int(self.sample_ratio * h * w)) for h, w in extents
            ]
            drawn = torch.rand(batch, length, device=device)
            if inside is not None:
                drawn.masked_fill_(~inside, 2.0)  # after all others
            ids = drawn.argsort(dim=1)[:, : max(counts)]
        elif inside is None:
            return Places(grid)
        else:
            counts = [h * w for h, w in extents]
            ids = (~inside).byte().argsort(dim=1, stable=True)
            ids = ids[:, : max(counts)]
        if len(set(counts)) == 1:
            return Places(grid, ids)
        slots = torch.arange(max(counts), device=device)
        alive = slots < torch.tensor(counts, device=device)[:, None]
        return Places(grid, ids, alive)


def _extents(
    samples: Sequence[DetDataSample] | None, images: torch.Tensor
) -> list[tuple[int, int]]:
    """Rows and columns of tokens that hold a pixel of each image."""
    batch, _, *size = images.shape
    shapes = [size] * batch
    if samples is not None:
        if len(samples) != batch:
            raise InputError(
                f'{batch} images came with {len(samples)} data samples; '
                'expected one each'
            )
        shapes = [sample.metainfo.get('img_shape') for sample in samples]
    for shape in shapes:
        if shape is None or not all(
            0 < side <= most for side, most in zip(shape, size, strict=False)
        ):
            raise InputError(
                f'img_shape of a data sample is {shape}; expected height and '
                f'width of its image, at most {size[0]}x{size[1]}, those of '
                "the padded batch. Have 'img_shape' in meta_keys of the step "
                'PackDetInputs.'
            )
    return [(-(-h // STRIDE), -(-w // STRIDE)) for h, w, *_ in shapes]


def _inside(
    extents: list[tuple[int, int]],
    grid: tuple[int, int],
    device: torch.device,
) -> torch.Tensor | None:
    """bool (B, h * w), False for padding; None if there is none."""
    if all(extent == grid for extent in extents):
        return None
    ends = torch.tensor(extents, device=device)
    rows, columns = (torch.arange(side, device=device) for side in grid)
    inside_rows = rows < ends[:, :1]
    inside_columns = columns < ends[:, 1:]
    return (inside_rows[:, :, None] & inside_columns[:, None]).flatten(1)


def _given(
    samples: Sequence[DetDataSample] | None, batch: int
) -> list[torch.Tensor] | None:
    """``visible_ids`` of the samples, if they have them."""
    given = [s.get('visible_ids') for s in samples or () if 'visible_ids' in s]
    if not given:
        return None
    if len(given) != batch:
        raise InputError(
            f'of {batch} data samples {len(given)} carry `visible_ids`; '
            'expected it on all of them, or on none'
        )
    for ids in given:
        if ids.ndim != 1 or not len(ids) or ids.dtype != torch.int64:
            raise InputError(
                f'`visible_ids` is {ids.dtype} of shape {tuple(ids.shape)}; '
                'expected int64 (K,), at least one token, each at most once'
            )
    return given
