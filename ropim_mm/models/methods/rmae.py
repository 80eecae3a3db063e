r"""R-MAE: Regions Meet Masked Autoencoders.

Nguyen, Aggarwal, Li, Oswald, Kirillov, Snoek and Chen, ICLR 2024 (arXiv
2306.05411).

An image and R binary maps of its regions are cut into the same patches, and
one permutation of the patches says which are hidden from whom. The *pixel
branch* is MAE: the encoder sees the visible patches of the image, a decoder
paints the hidden ones. The *region branch* encodes the visible patches of
each map into one vector, a query. Every query meets every token of an image
memory, made from the encoder's output, and asks for its region's hidden
patches:

.. math::

    \mathcal{L} = w_p \operatorname{mean} (\mathrm{pixels} - \hat{x})^2
        + w_r \operatorname{mean} \mathrm{BCE}(\mathrm{regions}, \hat{y})

both over hidden patches only. Without regions (R = 0) this is MAE (He et al.,
CVPR 2022); without a pixel branch it learns from regions alone.

Written for this project from the paper and from measurements, with the same
numbers as the released code and less work. Only visible patches are embedded.
Attention does not mind the order of tokens, so they stay in the order of the
permutation, hidden patches are a slice of them, and what nobody asks for is
not computed. The pairs of queries and memory tokens are made late
(``layers/pairs.py``). The released configs all set R to 0; here they set
8.
"""

from __future__ import annotations

import torch
from mmengine.model import BaseModule
from mmpretrain.models.utils import build_norm_layer, resize_pos_embed
from mmpretrain.structures import DataSample
from torch import nn
from torch.nn import functional as F

from ...errors import InputError
from ...registry import MODELS
from ..layers.attention import SelfAttention
from ..layers.block import Block, FeedForward
from ..layers.narrow_attention import NarrowAttention
from ..layers.pairs import Pairs, read_and_compare, take_apart
from ..layers.patches import (
    PatchEmbed,
    Size,
    grid_of,
    normalize_patches,
    patchify,
    to_pair,
    unpatchify,
)
from ..layers.positions import (
    grid_of_sincos,
    keep_fixed_tables,
    sincos_positions,
)
from ..layers.tokens import (
    embed_patches,
    embed_some,
    random_permutations,
    restore_order,
    take_patches,
    take_region_patches,
    take_tokens,
)
from ..layers.vit import ViTBackbone
from .base import SelfSupervisor, replayed

NORM = dict(type='LN', eps=1e-6)


def init_as_mae(module: nn.Module) -> None:
    """Xavier for linear layers and patch embeddings, 0 for their biases.

    The bias of a patch embedding keeps PyTorch's initial values, as released.
    """
    for each in module.modules():
        if isinstance(each, nn.Linear):
            nn.init.xavier_uniform_(each.weight)
            if each.bias is not None:
                nn.init.zeros_(each.bias)
        elif isinstance(each, nn.Conv2d):
            nn.init.xavier_uniform_(each.weight.flatten(1))
        elif isinstance(each, nn.LayerNorm):
            each.reset_parameters()


@MODELS.register_module()
class RMAEViT(ViTBackbone):
    """Encoder of R-MAE and MAE: a plain ViT with fixed positions.

    Without ``visible`` it is an ordinary backbone for classification,
    segmentation and detection, and its weights are those of MMPretrain's
    ``VisionTransformer``. Arguments and outputs are those of
    :class:`~ropim_mm.models.layers.ViTBackbone`; 'huge' is an ``arch`` too
    (with patches of 14 as released). For pretraining: ``out_type='raw'``.

    Args:
        learn_positions: Train the positions, which start as sines and cosines
            (fine-tuning). If not, they are frozen.
        **kwargs: Arguments of
            :class:`~ropim_mm.models.layers.ViTBackbone`.
    """

    arch_zoo = dict(ViTBackbone.arch_zoo, huge=(1280, 32, 16, 5120))

    def __init__(self, learn_positions: bool = False, **kwargs) -> None:
        super().__init__(**kwargs)
        self.pos_embed = nn.Parameter(
            sincos_positions(self.patch_resolution, self.embed_dims),
            requires_grad=learn_positions,
        )
        self.build_layers()

    def _adapt_pos_embed(self, state: dict, key: str) -> dict:
        table = state.get(key)
        if table is None or table.ndim != 3:
            return super()._adapt_pos_embed(state, key)
        # The formula tells the grid; trained positions do not.
        source = grid_of_sincos(table)
        if source is None or table.shape[-1] != self.embed_dims:
            return super()._adapt_pos_embed(state, key)
        if not self.pos_embed.requires_grad:
            state[key] = self.pos_embed.detach().clone()
        elif source != self.patch_resolution:
            state[key] = resize_pos_embed(
                table, source, self.patch_resolution, self.interpolate_mode, 1
            )
        return state

    def init_encoder(self) -> None:
        """Xavier, a normal class token and the table of positions."""
        init_as_mae(self)
        nn.init.normal_(self.cls_token, std=0.02)
        self.pos_embed.copy_(
            sincos_positions(self.patch_resolution, self.embed_dims)
        )

    def forward(
        self, x: torch.Tensor, visible: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Encode images, or only some of their patches.

        Args:
            x: (B, C, H, W), normalised.
            visible: (B, K) int64, the patches to encode, row-major over the
                grid; None for all.

        Returns:
            One tensor for each of ``out_indices``, shaped by ``out_type``;
            'raw' tokens (B, 1 + K, D) are in the order of ``visible``.
        """
        if visible is None:
            return super().forward(x)
        grid = grid_of(tuple(x.shape[-2:]), self.patch_size)
        tokens = embed_some(self.patch_embed, x, visible)
        positions = self.positions(grid)
        tokens = tokens + take_tokens(positions[:, 1:], visible)
        first = (self.cls_token + positions[:, :1]).expand(len(x), -1, -1)
        tokens = torch.cat((first, tokens), dim=1)
        return self.encode(self.drop_after_pos(tokens), grid)


class FillingDecoder(BaseModule):
    """Tokens of all patches from those of the visible ones (MAE's decoder).

    A learned token stands for every hidden patch, positions say which, and
    blocks mix them with the visible ones. Names of weights are those of
    MMPretrain's ``MAEPretrainDecoder``.

    Args:
        embed_dims: Width of the encoder's tokens.
        decoder_dims: D, width of the decoder's tokens, a multiple of 4.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLPs over D.
        img_size: Side or (height, width) that positions are made for. They
            are resized where images have another.
        patch_size: Side or (height, width) of a patch.
        init_cfg: See MMEngine's ``BaseModule``.
    """

    def __init__(
        self,
        embed_dims: int,
        decoder_dims: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        img_size: Size = 224,
        patch_size: Size = 16,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if depth < 1:
            raise InputError(
                f'a decoder of depth {depth} (decoder_depth of the neck, '
                'cross_layers of the region branch); expected at least 1 '
                'block'
            )
        self.grid = grid_of(img_size, patch_size)
        self.decoder_embed = nn.Linear(embed_dims, decoder_dims)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dims))
        self.decoder_pos_embed = nn.Parameter(
            sincos_positions(self.grid, decoder_dims), requires_grad=False
        )
        self.decoder_blocks = nn.ModuleList(
            Block(
                decoder_dims,
                NarrowAttention(decoder_dims, num_heads),
                int(decoder_dims * mlp_ratio),
                NORM,
            )
            for _ in range(depth)
        )
        self.ln1 = build_norm_layer(NORM, decoder_dims)
        keep_fixed_tables(self, 'decoder_pos_embed')

    def init_weights(self) -> None:
        """Xavier and a normal token; then ``init_cfg``, if any."""
        if not self.is_init:
            with torch.no_grad():
                init_as_mae(self)
                nn.init.normal_(self.mask_token, std=0.02)
                self.decoder_pos_embed.copy_(
                    sincos_positions(self.grid, self.mask_token.shape[-1])
                )
        super().init_weights()

    def fill(
        self,
        latent: torch.Tensor,
        ids: torch.Tensor,
        grid: tuple[int, int],
        start: int = 0,
    ) -> torch.Tensor:
        """Tokens after the final norm, in the order of ``ids``.

        Args:
            latent: (B, 1 + K, embed_dims), class token and the patches
                ``ids[:, :K]``.
            ids: (B, L) int64, a permutation of the patches.
            grid: (h, w) with h * w = L.
            start: Tokens before this one are not wanted: 0 gives the class
                token and all patches, 1 + n the patches ``ids[:, n:]``. The
                last block does not finish the others.

        Returns:
            (B, 1 + L - start, D)
        """
        positions = resize_pos_embed(
            self.decoder_pos_embed, self.grid, grid, num_extra_tokens=1
        )
        hidden = ids.shape[1] + 1 - latent.shape[1]
        x = torch.cat(
            (
                self.decoder_embed(latent),
                self.mask_token.expand(len(ids), hidden, -1),
            ),
            dim=1,
        )
        x = x + take_tokens(positions, F.pad(ids + 1, (1, 0)))
        *before, last = self.decoder_blocks
        for block in before:
            x = block(x)
        mixed = last.attn(last.ln1(x), start)
        return self.ln1(last.finish(x[:, start:], mixed))


@MODELS.register_module()
class RMAENeck(FillingDecoder):
    """Pixel decoder of R-MAE and MAE.

    Names and layouts of the weights are those of MMPretrain's
    ``MAEPretrainDecoder``; grid, patch and channels are free.

    Args:
        embed_dims: Width of the encoder's tokens.
        img_size: Side or (height, width) that positions are made for.
        patch_size: Side or (height, width) of a patch.
        out_channels: C, channels of the image.
        decoder_dims: Width of the decoder's tokens.
        decoder_depth: Number of blocks.
        decoder_heads: Attention heads.
        mlp_ratio: Hidden width of the MLPs over ``decoder_dims``.
        init_cfg: See MMEngine's ``BaseModule``.
    """

    def __init__(
        self,
        embed_dims: int,
        img_size: Size = 224,
        patch_size: Size = 16,
        out_channels: int = 3,
        decoder_dims: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        mlp_ratio: float = 4.0,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(
            embed_dims,
            decoder_dims,
            decoder_depth,
            decoder_heads,
            mlp_ratio,
            img_size,
            patch_size,
            init_cfg,
        )
        ph, pw = to_pair(patch_size)
        self.decoder_pred = nn.Linear(decoder_dims, ph * pw * out_channels)

    def forward(
        self,
        latent: torch.Tensor,
        ids: torch.Tensor,
        grid: tuple[int, int],
        first: int = 0,
    ) -> torch.Tensor:
        """Predict the patches ``ids[:, first:]``, in this order.

        Args:
            latent: (B, 1 + K, embed_dims), class token and the patches
                ``ids[:, :K]``.
            ids: (B, L) int64, a permutation of the patches.
            grid: (h, w) with h * w = L.
            first: Where in ``ids`` the wanted patches begin.

        Returns:
            (B, L - first, ph * pw * C), values ordered (row, column,
            channel).
        """
        return self.decoder_pred(self.fill(latent, ids, grid, 1 + first))


@MODELS.register_module()
class RMAEHead(BaseModule):
    """Pixel loss of R-MAE and MAE: mean squared error of hidden patches.

    Args:
        patch_size: Side or (height, width) of a patch.
        norm_pix: Ask for patches normalised to mean 0 and variance 1.
        init_cfg: See MMEngine's ``BaseModule``.
    """

    def __init__(
        self,
        patch_size: Size = 16,
        norm_pix: bool = True,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.patch_size = to_pair(patch_size)
        self.norm_pix = norm_pix

    def target(self, images: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """What to predict for the patches ``ids``.

        Args:
            images: (B, C, H, W).
            ids: (B, K) int64.

        Returns:
            (B, K, ph * pw * C) float32, values ordered (row, column,
            channel).
        """
        patches = take_patches(images, ids, self.patch_size, True)
        return normalize_patches(patches) if self.norm_pix else patches.float()

    def loss(
        self, pred: torch.Tensor, images: torch.Tensor, ids: torch.Tensor
    ) -> torch.Tensor:
        """Mean squared error, a scalar.

        Args:
            pred: (B, K, ph * pw * C).
            images: (B, C, H, W).
            ids: (B, K) int64, the hidden patches.
        """
        return F.mse_loss(pred.float(), self.target(images, ids))

    def to_pixels(
        self, pred: torch.Tensor, images: torch.Tensor
    ) -> torch.Tensor:
        """Predictions of all patches as images.

        Normalised ones get mean and deviation of the true patches back.

        Args:
            pred: (B, L, ph * pw * C), row-major over the grid.
            images: (B, C, H, W).

        Returns:
            (B, C, H, W) float32
        """
        pred = pred.float()
        if self.norm_pix:
            patches = patchify(images, self.patch_size, True).float()
            variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
            pred = pred * (variance + 1e-6).sqrt() + mean
        grid = grid_of(tuple(images.shape[-2:]), self.patch_size)
        return unpatchify(pred, self.patch_size, grid, True)


class RegionEncoder(BaseModule):
    """One vector a region, from the visible patches of its map.

    A ViT for maps of one channel, without class token and final norm; its
    tokens are averaged.

    Args:
        dims: D, width of a token, a multiple of 4.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLPs over D.
        img_size: Side or (height, width) that positions are made for.
        patch_size: Side or (height, width) of a patch.
    """

    def __init__(
        self,
        dims: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        img_size: Size,
        patch_size: Size,
    ) -> None:
        super().__init__()
        self.patch_size = to_pair(patch_size)
        self.grid = grid_of(img_size, patch_size)
        self.patch_embed = PatchEmbed(1, dims, patch_size)
        self.pos_embed = nn.Parameter(
            sincos_positions(self.grid, dims), requires_grad=False
        )
        self.layers = nn.ModuleList(
            Block(
                dims,
                SelfAttention(dims, num_heads),
                int(dims * mlp_ratio),
                NORM,
            )
            for _ in range(depth)
        )
        keep_fixed_tables(self, 'pos_embed')

    def forward(
        self,
        regions: torch.Tensor,
        visible: torch.Tensor,
        grid: tuple[int, int],
    ) -> torch.Tensor:
        """Encode maps.

        Args:
            regions: (B, R, H, W), bool or any number in [0, 1].
            visible: (B, K) int64, the patches that are seen.
            grid: (h, w) of the patches.

        Returns:
            (B, R, D)
        """
        batch, count = regions.shape[:2]
        patches = take_region_patches(regions, visible, self.patch_size)
        positions = resize_pos_embed(
            self.pos_embed, self.grid, grid, num_extra_tokens=1
        )
        x = embed_patches(self.patch_embed, patches.to(positions.dtype) - 0.5)
        x = x + take_tokens(positions[:, 1:], visible).unsqueeze(1)
        x = x.flatten(0, 1)
        for block in self.layers[:-1]:
            x = block(x)
        for block in self.layers[-1:]:
            x = x + block.attn(block.ln1(x))
            # The last linear layer of the mean, not the mean of its outputs.
            hidden = block.ffn.layers[0](block.ln2(x)).mean(1, keepdim=True)
            x = x.mean(1, keepdim=True) + block.ffn.layers[1](hidden)
        return x.mean(1).unflatten(0, (batch, count))


class CrossAttention(nn.Module):
    """Multi-head attention of queries to a memory.

    Args:
        dims: D, width of both.
        num_heads: Heads; D must be a multiple of it.
    """

    def __init__(self, dims: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dims, dims)
        self.kv = nn.Linear(dims, 2 * dims)
        self.proj = nn.Linear(dims, dims)

    def forward(
        self, queries: torch.Tensor, memory: torch.Tensor
    ) -> torch.Tensor:
        """Queries (B, R, D), memory (B, N, D) -> (B, R, D)."""
        q = self.q(queries).unflatten(-1, (self.num_heads, -1))
        kv = self.kv(memory).unflatten(-1, (2, self.num_heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q.transpose(1, 2), k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


class QueryBlock(nn.Module):
    """Queries look at each other, then at the memory; then an MLP.

    Args:
        dims: D, width of queries and memory.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over D.
    """

    def __init__(self, dims: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.ln1 = build_norm_layer(NORM, dims)
        self.attn = SelfAttention(dims, num_heads)
        self.ln2 = build_norm_layer(NORM, dims)
        self.cross_attn = CrossAttention(dims, num_heads)
        self.ln3 = build_norm_layer(NORM, dims)
        self.ffn = FeedForward(dims, int(dims * mlp_ratio))

    def forward(
        self, queries: torch.Tensor, memory: torch.Tensor
    ) -> torch.Tensor:
        """Queries (B, R, D), memory (B, N, D) -> (B, R, D)."""
        queries = queries + self.attn(self.ln1(queries))
        queries = queries + self.cross_attn(self.ln2(queries), memory)
        return queries + self.ffn(self.ln3(queries))


class ExpansionBlock(nn.Module):
    """Every query meets every memory token (section 3.2 of the paper).

    After self-attention of the queries, each query is added to each token of
    a linear map of the memory; the sum goes through LayerNorm and an MLP of
    hidden width D, without a residual. Sums are not made before the first
    layer of the MLP, see :mod:`~ropim_mm.models.layers.pairs`.

    Args:
        dims: D, width of queries and memory.
        num_heads: Attention heads.
    """

    def __init__(self, dims: int, num_heads: int) -> None:
        super().__init__()
        self.ln1 = build_norm_layer(NORM, dims)
        self.attn = SelfAttention(dims, num_heads)
        self.memory = nn.Linear(dims, dims)
        self.ln2 = build_norm_layer(NORM, dims)
        self.ffn = FeedForward(dims, dims)

    def pairs(self, queries: torch.Tensor, memory: torch.Tensor) -> Pairs:
        """Queries (B, R, D), memory (B, N, D), up to the MLP's first GELU."""
        queries = queries + self.attn(self.ln1(queries))
        first = self.ffn.layers[0][0]
        return take_apart(queries, self.memory(memory), self.ln2, first)

    def forward(
        self, queries: torch.Tensor, memory: torch.Tensor
    ) -> torch.Tensor:
        """Queries (B, R, D), memory (B, N, D) -> (B, R, N, D)."""
        pairs = self.pairs(queries, memory).join()
        return self.ffn.layers[1](F.gelu(pairs))


@MODELS.register_module()
class RMAERegionBranch(BaseModule):
    """Region encoder, image memory and query decoder of R-MAE.

    Args:
        embed_dims: Width of the pixel encoder's tokens.
        img_size: Side or (height, width) that positions are made for.
        patch_size: Side or (height, width) of a patch.
        enc_dims, enc_depth, enc_heads: Width, blocks and heads of the region
            encoder.
        dec_dims, dec_depth, dec_heads: Width, blocks and heads of the query
            decoder; the last of its blocks is the expansion.
        cross_layers: Blocks that make the image memory, of ``dec_dims`` and
            ``dec_heads``.
        mlp_ratio: Hidden width of the MLPs over their width.
        bg_loss_weight: Weight of pixels outside their region (target 0); the
            mean is not divided by it.
        init_cfg: See MMEngine's ``BaseModule``.
    """

    def __init__(
        self,
        embed_dims: int,
        img_size: Size = 224,
        patch_size: Size = 16,
        enc_dims: int = 128,
        enc_depth: int = 1,
        enc_heads: int = 8,
        dec_dims: int = 128,
        dec_depth: int = 1,
        dec_heads: int = 8,
        cross_layers: int = 8,
        mlp_ratio: float = 4.0,
        bg_loss_weight: float = 1.0,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if dec_depth < 1:
            raise InputError(
                f'dec_depth is {dec_depth}; expected at least 1, the '
                'expansion block'
            )
        self.patch_size = to_pair(patch_size)
        self.bg_loss_weight = bg_loss_weight
        self.encoder = RegionEncoder(
            enc_dims, enc_depth, enc_heads, mlp_ratio, img_size, patch_size
        )
        self.memory = FillingDecoder(
            embed_dims,
            dec_dims,
            cross_layers,
            dec_heads,
            mlp_ratio,
            img_size,
            patch_size,
        )
        self.to_query = nn.Sequential(
            build_norm_layer(NORM, enc_dims), nn.Linear(enc_dims, dec_dims)
        )
        self.layers = nn.ModuleList(
            QueryBlock(dec_dims, dec_heads, mlp_ratio)
            for _ in range(dec_depth - 1)
        )
        self.expansion = ExpansionBlock(dec_dims, dec_heads)
        ph, pw = self.patch_size
        self.pred = nn.Linear(dec_dims, ph * pw)

    def init_weights(self) -> None:
        """Xavier everywhere and a normal token; then ``init_cfg``, if any."""
        if not self.is_init:
            with torch.no_grad():
                init_as_mae(self)
        super().init_weights()

    def forward(
        self,
        latent: torch.Tensor,
        regions: torch.Tensor,
        ids: torch.Tensor,
        grid: tuple[int, int],
        keep: int,
        first: int = 0,
    ) -> torch.Tensor:
        """Predict the maps' patches ``ids[:, first:]``, in this order.

        Args:
            latent: (B, 1 + K, embed_dims), class token and the patches
                ``ids[:, :K]`` of the pixel encoder.
            regions: (B, R, H, W), bool or any number in [0, 1].
            ids: (B, L) int64, a permutation of the patches.
            grid: (h, w) with h * w = L.
            keep: The region encoder sees the patches ``ids[:, :keep]``.
            first: Where in ``ids`` the wanted patches begin.

        Returns:
            Logits (B, R, L - first, ph * pw), values ordered (row, column).
        """
        queries, memory = self.decode(latent, regions, ids, grid, keep, first)
        return self.pred(F.gelu(self.expansion(queries, memory)))

    def decode(
        self,
        latent: torch.Tensor,
        regions: torch.Tensor,
        ids: torch.Tensor,
        grid: tuple[int, int],
        keep: int,
        first: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the expansion block joins; arguments as :meth:`forward`.

        Returns:
            Queries (B, R, dec_dims), and the memory of the wanted patches
            (B, L - first, dec_dims).
        """
        queries = self.to_query(self.encoder(regions, ids[:, :keep], grid))
        # Without blocks that look at the whole memory, part of it will do.
        start = 0 if self.layers else 1 + first
        memory = self.memory.fill(latent, ids, grid, start)
        for block in self.layers:
            queries = block(queries, memory)
        return queries, memory[:, 1 + first - start :]

    def loss(
        self,
        latent: torch.Tensor,
        regions: torch.Tensor,
        ids: torch.Tensor,
        grid: tuple[int, int],
        keep: int,
    ) -> torch.Tensor:
        """Mean binary cross entropy of the hidden patches, a scalar.

        Args:
            latent, regions, ids, grid, keep: As for :meth:`forward`; the
                patches ``ids[:, keep:]`` are hidden.
        """
        pairs = self.expansion.pairs(
            *self.decode(latent, regions, ids, grid, keep, keep)
        )
        target = take_region_patches(regions, ids[:, keep:], self.patch_size)
        second = self.expansion.ffn.layers[1]
        return read_and_compare(
            pairs, second, self.pred, target, self.bg_loss_weight
        )


@MODELS.register_module()
class RMAE(SelfSupervisor):
    """R-MAE pretraining.

    Data samples carry ``regions``, bool or numbers in [0, 1], (R, H, W) of
    the size of the image. They may carry ``shuffle_ids``, int64 (L,), a
    permutation of the patches (row-major over the grid) of which the first
    ``int(L * (1 - mask_ratio))`` are shown to the pixel encoder and the first
    ``int(L * (1 - region_mask_ratio))`` to the region encoder. Where the
    samples have none, permutations are drawn on the model's device.

    Args:
        backbone: :class:`RMAEViT`, with ``out_type='raw'``.
        neck: :class:`RMAENeck`; None to learn from regions alone.
        head: :class:`RMAEHead`; None where there is no neck.
        region_branch: :class:`RMAERegionBranch`; not built where
            ``num_regions`` is 0.
        num_regions: R, regions of an image; 0 for MAE, which reads no
            ``regions``.
        mask_ratio: Share of patches hidden from the pixel encoder, in (0, 1).
        region_mask_ratio: Share hidden from the region encoder, in (0, 1).
        pixel_loss_weight, region_loss_weight: Factors of the two losses.
        data_preprocessor: Default MMPretrain's ``SelfSupDataPreprocessor``.
        init_cfg: See MMEngine's ``BaseModule``.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict | None = None,
        head: dict | None = None,
        region_branch: dict | None = None,
        num_regions: int = 8,
        mask_ratio: float = 0.75,
        region_mask_ratio: float = 0.75,
        pixel_loss_weight: float = 1.0,
        region_loss_weight: float = 1.0,
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
        ratios = dict(
            mask_ratio=mask_ratio, region_mask_ratio=region_mask_ratio
        )
        for name, ratio in ratios.items():
            if not 0.0 < ratio < 1.0:
                raise InputError(
                    f'{name} is {ratio}; expected a number strictly between '
                    '0 and 1: the share of patches that is hidden'
                )
        if num_regions < 0:
            raise InputError(
                f'num_regions is {num_regions}; expected 0 (MAE) or more'
            )
        if (neck is None) != (head is None):
            raise InputError(
                f'neck is {neck} and head is {head}; expected both (pixel '
                'branch) or none (regions alone)'
            )
        if num_regions and region_branch is None:
            raise InputError(
                f'num_regions is {num_regions}, but region_branch is None; '
                'give its config, or set num_regions=0 for MAE'
            )
        if neck is None and not num_regions:
            raise InputError(
                'num_regions is 0 and there is no neck: nothing to learn '
                'from. Expected regions, a pixel branch (neck and head) or '
                'both.'
            )
        self.num_regions = num_regions
        self.mask_ratio = mask_ratio
        self.region_mask_ratio = region_mask_ratio
        self.pixel_loss_weight = pixel_loss_weight
        self.region_loss_weight = region_loss_weight
        self.region_branch = None
        if num_regions:
            if not isinstance(region_branch, nn.Module):
                region_branch = MODELS.build(region_branch)
            self.region_branch = region_branch
        self._check_parts()

    def _check_parts(self) -> None:
        backbone = self.backbone
        found = dict(
            out_type=backbone.out_type,
            final_norm=backbone.final_norm,
            out_indices=backbone.out_indices,
        )
        wanted = dict(
            out_type='raw',
            final_norm=True,
            out_indices=(backbone.num_layers - 1,),
        )
        if found != wanted:
            raise InputError(
                f'model.backbone has {found}; R-MAE needs {wanted} of '
                'ropim_mm.RMAEViT, since the decoders want all tokens of the '
                'last block'
            )
        sizes = dict(backbone=backbone.patch_size)
        if self.with_neck:
            sizes['head'] = self.head.patch_size
        if self.region_branch is not None:
            sizes['region_branch'] = self.region_branch.patch_size
        if len(set(sizes.values())) > 1:
            raise InputError(
                f'patch_size (height, width) differs between parts of the '
                f'model: {sizes}; expected the same for all, and for the neck'
            )
        if not self.with_neck:
            return
        height, width = backbone.patch_size
        channels = backbone.patch_embed.in_channels
        values = self.neck.decoder_pred.out_features
        if values != height * width * channels:
            raise InputError(
                f'model.neck predicts {values} values a patch; patches of '
                f'{height}x{width} pixels with {channels} channels (backbone) '
                f'have {height * width * channels}. Set patch_size and '
                'out_channels of the neck accordingly.'
            )

    def loss(
        self,
        inputs: torch.Tensor,
        data_samples: list[DataSample] | None = None,
    ) -> dict[str, torch.Tensor]:
        """One training step's losses, weighted.

        Args:
            inputs: (B, C, H, W), normalised images.
            data_samples: B samples with ``regions`` and, or without,
                ``shuffle_ids``.

        Returns:
            ``dict(loss_pixel=scalar, loss_region=scalar)``, float32; that of
            an absent branch is 0.
        """
        ids, grid = self.shuffle_ids(inputs, data_samples)
        keep, keep_regions = self.num_visible(grid)
        latent = self.encode(inputs, ids[:, :keep])
        loss_pixel = loss_region = latent.new_zeros((), dtype=torch.float32)
        if self.with_neck:
            pred = self.neck(latent, ids, grid, keep)
            loss_pixel = self.head.loss(pred, inputs, ids[:, keep:])
        if self.num_regions:
            regions = self.regions(inputs, data_samples)
            loss_region = self.region_branch.loss(
                latent, regions, ids, grid, keep_regions
            )
        return dict(
            loss_pixel=self.pixel_loss_weight * loss_pixel,
            loss_region=self.region_loss_weight * loss_region,
        )

    def encode(
        self, inputs: torch.Tensor, visible: torch.Tensor
    ) -> torch.Tensor:
        """Tokens of the visible patches.

        Args:
            inputs: (B, C, H, W).
            visible: (B, K) int64.

        Returns:
            (B, 1 + K, D), class token first.
        """
        return self.backbone(inputs, visible)[-1]

    def predict(
        self,
        inputs: torch.Tensor,
        data_samples: list[DataSample] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Predictions for all patches, visible ones too.

        Args:
            inputs: (B, C, H, W), normalised images.
            data_samples: As for :meth:`loss`.

        Returns:
            dict, row-major over the grid: ``mask`` and ``region_mask`` (B, L)
            bool, True where a patch was hidden from the pixel and the region
            encoder; with a pixel branch ``pixels`` (B, L, ph * pw * C), see
            :meth:`RMAEHead.to_pixels`; with regions ``regions``, logits
            (B, R, L, ph * pw).
        """
        ids, grid = self.shuffle_ids(inputs, data_samples)
        keep, keep_regions = self.num_visible(grid)
        latent = self.encode(inputs, ids[:, :keep])
        rank = ids.argsort(dim=1)
        result = dict(mask=rank >= keep, region_mask=rank >= keep_regions)
        if self.with_neck:
            pred = self.neck(latent, ids, grid)
            result['pixels'] = restore_order(pred, ids)
        if self.num_regions:
            regions = self.regions(inputs, data_samples)
            logits = self.region_branch(
                latent, regions, ids, grid, keep_regions
            )
            repeated = ids.repeat_interleave(self.num_regions, dim=0)
            logits = restore_order(logits.flatten(0, 1), repeated)
            result['regions'] = logits.unflatten(0, (-1, self.num_regions))
        return result

    def num_visible(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Patches that the pixel and the region encoder see.

        Raises:
            InputError: A ratio shows nothing of this grid, or hides nothing.
        """
        length = grid[0] * grid[1]
        counts = []
        for name in ('mask_ratio', 'region_mask_ratio'):
            ratio = getattr(self, name)
            counts.append(int(length * (1 - ratio)))
            if not 0 < counts[-1] < length:
                raise InputError(
                    f'{name} {ratio} of {length} patches shows '
                    f'{counts[-1]} of them; expected 1 to {length - 1}. Use '
                    'another ratio or larger images.'
                )
        return counts[0], counts[1]

    def shuffle_ids(
        self, inputs: torch.Tensor, data_samples: list[DataSample] | None
    ) -> tuple[torch.Tensor, tuple[int, int]]:
        """The data samples' permutations, or new ones.

        Returns:
            ids (B, L) int64, and the grid (h, w) of the patches.
        """
        if not isinstance(inputs, torch.Tensor):
            raise InputError(
                f'inputs of R-MAE are a {type(inputs).__name__} of '
                f'{len(inputs)}; expected one tensor (B, C, H, W)'
            )
        grid = grid_of(tuple(inputs.shape[-2:]), self.backbone.patch_size)
        batch, length = len(inputs), grid[0] * grid[1]
        given = replayed(
            data_samples,
            'shuffle_ids',
            batch,
            (length,),
            f'a permutation of the patches of images of '
            f'{tuple(inputs.shape[2:])}',
        )
        if given is None:
            return random_permutations(batch, length, inputs.device), grid
        # On a device they could only be looked at by waiting for it.
        if given.device.type == 'cpu' and not torch.compiler.is_compiling():
            ordered = given.sort(dim=1).values
            if not torch.equal(
                ordered, torch.arange(length).expand(batch, -1)
            ):
                raise InputError(
                    '`shuffle_ids` is no permutation on every data sample; '
                    f'expected each of 0 to {length - 1} once'
                )
        return given.to(inputs.device, torch.int64), grid

    def regions(
        self, inputs: torch.Tensor, data_samples: list[DataSample] | None
    ) -> torch.Tensor:
        """The data samples' region maps.

        Returns:
            (B, R, H, W), bool, or the samples' floating type.
        """
        batch, size = len(inputs), tuple(inputs.shape[2:])
        given = [s.regions for s in data_samples or () if 'regions' in s]
        advice = (
            f'expected `regions` of shape {(self.num_regions, *size)} on '
            'each: num_regions maps of the size of the image. Load them with '
            'the pipeline of configs/rmae, or set num_regions=0 for MAE.'
        )
        if len(given) != batch:
            raise InputError(
                f'of {batch} data samples {len(given)} carry `regions`; '
                f'{advice}'
            )
        shapes = sorted({tuple(r.shape) for r in given})
        if shapes != [(self.num_regions, *size)]:
            raise InputError(f'`regions` has shapes {shapes}; {advice}')
        regions = torch.stack(given).to(inputs.device)
        # Numbers of a picture file, 0 and 255, are no targets.
        return regions if regions.is_floating_point() else regions != 0
