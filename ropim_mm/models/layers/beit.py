"""The BEiT-style encoder that ROPIM and ConMIM share.

Pre-norm blocks with LayerScale, query and value biases, relative position
bias (one table for all blocks in pretraining, one a block in fine-tuning), no
absolute positions by default (BEiT, Bao et al., ICLR 2022). Parameter names
and layouts are those of MMPretrain's ``BEiTViT``; unlike it, this one takes
any image size at run time, resizes tables without the removed
``scipy.interpolate.interp2d`` and expands a shared table under any prefix.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import torch
from mmengine.logging import print_log
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.models.utils import build_norm_layer, resize_pos_embed
from torch import nn
from torch.nn.init import trunc_normal_

from ...checkpoints import PretrainedMixin
from ...checkpoints.beit_names import ARCHS, grid_of_table
from ...errors import InputError
from .attention import RelPosAttention
from .patches import PatchEmbed, Size, grid_of, to_pair
from .relative_position import (
    SharedRelativePositionBias,
    resize_table,
)

TABLE = 'relative_position_bias_table'
INDEX = 'relative_position_index'


def _cut_normal_(tensor: torch.Tensor, std: float, cut: float) -> None:
    # trunc_normal_ inverts the distribution function in float32: cut far out
    # in the tails, one weight in 2^24 lands on the cut itself, 100 std away.
    if cut > 6 * std:
        nn.init.normal_(tensor, std=std)
    else:
        trunc_normal_(tensor, std=std, a=-cut, b=cut)


class FeedForward(nn.Module):
    """Two linear layers with GELU between, names as MMCV's ``FFN``."""

    def __init__(
        self, embed_dims: int, hidden_dims: int, drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Sequential(
                nn.Linear(embed_dims, hidden_dims),
                nn.GELU(),
                nn.Dropout(drop_rate),
            ),
            nn.Linear(hidden_dims, embed_dims),
            nn.Dropout(drop_rate),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, D) -> (B, N, D)"""
        return self.layers(x)


def add_branch(
    x: torch.Tensor,
    branch: torch.Tensor,
    gamma: torch.Tensor | None,
    drop_path: float,
) -> torch.Tensor:
    """x + gamma * branch, the branch left out for a random share of images.

    LayerScale (Touvron et al., 2021) and stochastic depth (Huang et al.,
    2016) in one pass over the tokens: what multiplies the branch is a small
    tensor. Kept branches are divided by the probability of being kept.

    Args:
        x, branch: (B, N, D).
        gamma: (D,), or None for 1.
        drop_path: Probability of leaving a branch out.
    """
    factor = gamma
    if drop_path:
        keep = 1.0 - drop_path
        drawn = torch.empty(x.shape[0], 1, 1, device=x.device)
        drawn = drawn.bernoulli_(keep).div_(keep)
        factor = drawn if gamma is None else drawn * gamma
    if factor is None:
        return x + branch
    return torch.addcmul(x, branch, factor)


class BEiTBlock(nn.Module):
    """x + gamma_1 attention(ln1 x), then x + gamma_2 mlp(ln2 x).

    Args:
        embed_dims: D, width of a token.
        num_heads: Attention heads.
        feedforward_channels: Hidden width of the MLP.
        grid: (h, w) of this block's own bias table, None for no own table.
        layer_scale_init_value: Start of gamma_1 and gamma_2; 0 for none.
        drop_path_rate: Stochastic depth of this block.
        drop_rate: Dropout of projections and MLP.
        attn_drop_rate: Dropout of attention weights.
        qkv_bias: See :class:`RelPosAttention`.
        norm_cfg: Config of the normalisation layers.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        feedforward_channels: int,
        grid: tuple[int, int] | None,
        layer_scale_init_value: float,
        drop_path_rate: float,
        drop_rate: float,
        attn_drop_rate: float,
        qkv_bias: str | bool,
        norm_cfg: dict,
    ) -> None:
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.ln1 = build_norm_layer(norm_cfg, embed_dims)
        self.attn = RelPosAttention(
            embed_dims, num_heads, grid, qkv_bias, attn_drop_rate, drop_rate
        )
        self.ln2 = build_norm_layer(norm_cfg, embed_dims)
        self.ffn = FeedForward(embed_dims, feedforward_channels, drop_rate)
        self.gamma_1 = self.gamma_2 = None
        if layer_scale_init_value:
            start = torch.full((embed_dims,), float(layer_scale_init_value))
            self.gamma_1 = nn.Parameter(start)
            self.gamma_2 = nn.Parameter(start.clone())

    def forward(
        self,
        x: torch.Tensor,
        grid: tuple[int, int],
        shared_bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """(B, 1 + L, D) -> (B, 1 + L, D); grid (h, w) with h * w = L."""
        drop_path = self.drop_path_rate if self.training else 0.0
        branch = self.attn(self.ln1(x), grid, shared_bias)
        x = add_branch(x, branch, self.gamma_1, drop_path)
        branch = self.ffn(self.ln2(x))
        return add_branch(x, branch, self.gamma_2, drop_path)


class BEiTStyleViT(PretrainedMixin, BaseBackbone):
    """Vision transformer with relative position bias.

    Args:
        arch: 'tiny', 'small', 'base', 'large', or a dict with
            ``embed_dims``, ``num_layers``, ``num_heads`` and
            ``feedforward_channels``.
        img_size: Side or (height, width) the tables are made for. Other
            sizes work at run time, with resized tables.
        patch_size: Side or (height, width) of a patch.
        in_channels: Channels of the image.
        out_indices: Block(s) whose output is returned; negative from the end.
        drop_rate: Dropout of embeddings, projections and MLPs.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth of the last block, growing linearly
            from 0 at the first.
        qkv_bias: 'qv_bias' (queries and values), True or False.
        norm_cfg: Config of the normalisation layers.
        final_norm: Normalise the last block's output (pretraining).
        out_type: 'raw' (B, 1 + L, D), 'cls_token' (B, D), 'featmap'
            (B, D, h, w), or 'avg_featmap' (B, D): mean of the patch tokens,
            then a LayerNorm.
        with_cls_token: Only True is possible: the tables hold rows for it.
        frozen_stages: -1 nothing; 0 the embeddings; n > 0 the first n blocks
            too; all blocks: the norms after them as well.
        use_abs_pos_emb: Learned absolute positions.
        use_rel_pos_bias: A bias table in each block (fine-tuning).
        use_shared_rel_pos_bias: One table for all blocks (pretraining).
        interpolate_mode: How absolute positions are resized.
        layer_scale_init_value: Start of LayerScale; 0 for none.
        init_cutoff: Where the normal distribution (std 0.02) of the initial
            weights is cut, in absolute value. The released pretraining
            classes cut at one std, the fine-tuning ones at 2.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE,
            prefix='backbone.')`` loads with a coverage check, see
            :class:`ropim_mm.checkpoints.PretrainedMixin`.
    """

    arch_zoo = ARCHS
    arch_keys = (
        'embed_dims',
        'num_layers',
        'num_heads',
        'feedforward_channels',
    )
    out_types = ('raw', 'cls_token', 'featmap', 'avg_featmap')
    num_extra_tokens = 1

    # What a pretraining checkpoint does not have, and what is of no use
    # after pretraining; see checkpoints/coverage.py.
    fresh_keys = ('ln2.',)
    pretraining_only_keys = ('ln1.', 'mask_token')

    def __init__(
        self,
        arch: str | dict = 'base',
        img_size: Size = 224,
        patch_size: Size = 16,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = -1,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        qkv_bias: str | bool = 'qv_bias',
        norm_cfg: dict | None = None,
        final_norm: bool = False,
        out_type: str = 'avg_featmap',
        with_cls_token: bool = True,
        frozen_stages: int = -1,
        use_abs_pos_emb: bool = False,
        use_rel_pos_bias: bool = True,
        use_shared_rel_pos_bias: bool = False,
        interpolate_mode: str = 'bicubic',
        layer_scale_init_value: float = 0.1,
        init_cutoff: float = 2.0,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        norm_cfg = norm_cfg or dict(type='LN', eps=1e-6)
        if not with_cls_token:
            raise InputError(
                f'{type(self).__name__} needs its class token '
                '(with_cls_token=True): the relative position tables have '
                'rows for it'
            )
        if use_rel_pos_bias and use_shared_rel_pos_bias:
            raise InputError(
                'use_rel_pos_bias (a table in each block) and '
                'use_shared_rel_pos_bias (one for all) exclude each other; '
                'set one of them to False'
            )
        if out_type not in self.out_types:
            raise InputError(
                f'out_type is {out_type!r}; expected one of {self.out_types}'
            )
        self.arch_settings = self._settings(arch)
        self.embed_dims = self.arch_settings['embed_dims']
        self.num_layers = self.arch_settings['num_layers']
        num_heads = self.arch_settings['num_heads']
        self.img_size, self.patch_size = to_pair(img_size), to_pair(patch_size)
        self.patch_resolution = grid_of(self.img_size, self.patch_size)
        self.out_type = out_type
        self.out_indices = self._indices(out_indices)
        self.use_rel_pos_bias = use_rel_pos_bias
        self.interpolate_mode = interpolate_mode
        self.init_cutoff = init_cutoff
        self.final_norm = final_norm
        self.frozen_stages = frozen_stages
        self.warned_of_resizing = False
        if not -1 <= frozen_stages <= self.num_layers:
            raise InputError(
                f'frozen_stages is {frozen_stages}; expected -1 to '
                f'{self.num_layers}, the number of blocks'
            )

        self.patch_embed = PatchEmbed(
            in_channels, self.embed_dims, self.patch_size
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.embed_dims))
        self.pos_embed = None
        if use_abs_pos_emb:
            tokens = 1 + math.prod(self.patch_resolution)
            self.pos_embed = nn.Parameter(
                torch.zeros(1, tokens, self.embed_dims)
            )
        self.drop_after_pos = nn.Dropout(drop_rate)
        self.rel_pos_bias = None
        if use_shared_rel_pos_bias:
            self.rel_pos_bias = SharedRelativePositionBias(
                self.patch_resolution, num_heads
            )
        last = max(1, self.num_layers - 1)
        self.layers = nn.ModuleList(
            BEiTBlock(
                self.embed_dims,
                num_heads,
                self.arch_settings['feedforward_channels'],
                self.patch_resolution if use_rel_pos_bias else None,
                layer_scale_init_value,
                drop_path_rate * i / last,
                drop_rate,
                attn_drop_rate,
                qkv_bias,
                norm_cfg,
            )
            for i in range(self.num_layers)
        )
        if final_norm:
            self.ln1 = build_norm_layer(norm_cfg, self.embed_dims)
        if out_type == 'avg_featmap':
            self.ln2 = build_norm_layer(norm_cfg, self.embed_dims)
        self._register_load_state_dict_pre_hook(self._adapt_in_place)
        self._freeze()

    def _settings(self, arch: str | dict) -> dict:
        if isinstance(arch, str) and arch in self.arch_zoo:
            return dict(zip(self.arch_keys, self.arch_zoo[arch], strict=True))
        if isinstance(arch, dict) and set(self.arch_keys) == set(arch):
            return dict(arch)
        raise InputError(
            f'arch is {arch!r}; expected one of {tuple(self.arch_zoo)} or a '
            f'dict with exactly the keys {self.arch_keys}'
        )

    def _indices(self, out_indices: int | Sequence[int]) -> tuple[int, ...]:
        if isinstance(out_indices, int):
            out_indices = (out_indices,)
        depth = self.num_layers
        for i in out_indices:
            if not -depth <= i < depth:
                raise InputError(
                    f'out_indices holds {i}; this encoder has {depth} '
                    f'blocks, expected {-depth} to {depth - 1}'
                )
        return tuple(i % depth for i in out_indices)

    def init_weights(self) -> None:
        """Initialise as released, then load ``init_cfg``'s checkpoint.

        A second call does nothing, as everywhere in MMEngine.
        """
        if self.is_init:
            super().init_weights()
            return
        cut = self.init_cutoff
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, (nn.Linear, nn.Conv2d)):
                    _cut_normal_(module.weight, 0.02, cut)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
            _cut_normal_(self.cls_token, 0.02, cut)
            if self.pos_embed is not None:
                _cut_normal_(self.pos_embed, 0.02, cut)
            for i, layer in enumerate(self.layers, start=1):
                layer.attn.proj.weight.div_(math.sqrt(2 * i))
                layer.ffn.layers[1].weight.div_(math.sqrt(2 * i))
        super().init_weights()

    def forward(
        self,
        x: torch.Tensor,
        embed: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Encode images.

        Args:
            x: (B, C, H, W), normalised.
            embed: What pretraining does to the patch tokens (B, L, D) before
                the class token joins them: ROPIM projects them, ConMIM
                replaces the masked ones.

        Returns:
            One tensor for each of ``out_indices``, shaped by ``out_type``.
        """
        x, grid = self.patch_embed(x)
        self._warn_of_resizing(grid)
        if embed is not None:
            x = embed(x)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        if self.pos_embed is not None:
            x = x + resize_pos_embed(
                self.pos_embed,
                self.patch_resolution,
                grid,
                mode=self.interpolate_mode,
                num_extra_tokens=1,
            )
        x = self.drop_after_pos(x)
        bias = None if self.rel_pos_bias is None else self.rel_pos_bias(grid)

        outs = []
        for i, layer in enumerate(self.layers):
            x = layer(x, grid, bias)
            if i == self.num_layers - 1 and self.final_norm:
                x = self.ln1(x)
            if i in self.out_indices:
                outs.append(self._format(x, grid))
        return tuple(outs)

    def _warn_of_resizing(self, grid: tuple[int, int]) -> None:
        if (
            self.training
            and grid != self.patch_resolution
            and not self.warned_of_resizing
            and not torch.compiler.is_compiling()
        ):
            self.warned_of_resizing = True
            rows, columns = (
                g * p for g, p in zip(grid, self.patch_size, strict=True)
            )
            print_log(
                f'{type(self).__name__} is trained on images of '
                f'{rows}x{columns} and has position tables for '
                f'{self.img_size[0]}x{self.img_size[1]}: they are resized in '
                'every step. Set img_size of the backbone to spare that.',
                logger='current',
                level=logging.WARNING,
            )

    def _format(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        if self.out_type == 'raw':
            return x
        if self.out_type == 'cls_token':
            return x[:, 0]
        patches = x[:, 1:]
        if self.out_type == 'featmap':
            return patches.transpose(1, 2).unflatten(2, grid).contiguous()
        return self.ln2(patches.mean(dim=1))

    # -- loading ----------------------------------------------------------

    def adapt_state_dict(self, state_dict: dict, prefix: str = '') -> dict:
        """Fit the weights of another stage or size to this encoder.

        A shared bias table is given to every block where this encoder has
        one a block; tables and absolute positions are resized to this
        encoder's grid; index buffers of another grid are left out.

        Args:
            state_dict: Names to tensors; not changed.
            prefix: What precedes this encoder's names.

        Returns:
            A new dict; keys outside ``prefix`` are passed on.
        """
        state = dict(state_dict)
        shared = f'{prefix}rel_pos_bias.'
        own = f'{prefix}layers.0.attn.{TABLE}'
        if self.use_rel_pos_bias and f'{shared}{TABLE}' in state:
            table = state.pop(f'{shared}{TABLE}')
            index = state.pop(f'{shared}{INDEX}', None)
            if own not in state:
                for i in range(self.num_layers):
                    block = f'{prefix}layers.{i}.attn.'
                    state[f'{block}{TABLE}'] = table.clone()
                    if index is not None:
                        state[f'{block}{INDEX}'] = index
        target = self.patch_resolution
        for key in [k for k in state if k.endswith(TABLE)]:
            if not key.startswith(prefix):
                continue
            index_key = key[: -len(TABLE)] + INDEX
            source = grid_of_table(
                len(state[key]), state.get(index_key), target
            )
            if source != target:
                state[key] = resize_table(state[key], source, target)
                state.pop(index_key, None)
        return self._adapt_pos_embed(state, f'{prefix}pos_embed')

    def _adapt_pos_embed(self, state: dict, key: str) -> dict:
        if self.pos_embed is None or key not in state:
            return state
        tokens = state[key].shape[1] - 1
        if tokens == math.prod(self.patch_resolution):
            return state
        side = math.isqrt(tokens)
        if side * side != tokens:
            raise InputError(
                f'{key} holds {tokens} positions, no square grid; it cannot '
                'be resized since the file does not say its grid'
            )
        state[key] = resize_pos_embed(
            state[key],
            (side, side),
            self.patch_resolution,
            self.interpolate_mode,
            1,
        )
        return state

    def _adapt_in_place(self, state_dict, prefix, *args) -> None:
        adapted = self.adapt_state_dict(state_dict, prefix)
        # A table may also come without its index, which is not a weight.
        for name, buffer in self.named_buffers():
            if name.endswith(INDEX):
                table = prefix + name[: -len(INDEX)] + TABLE
                if table in adapted:
                    adapted[prefix + name] = buffer
        state_dict.clear()
        state_dict.update(adapted)

    # -- training ---------------------------------------------------------

    def get_layer_depth(
        self, param_name: str, prefix: str = ''
    ) -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning rate decay.

        Embeddings have depth 0, block i has i + 1, everything after the
        blocks (and outside this encoder) ``num_layers + 1``.

        Returns:
            (depth, number of depths), the latter ``num_layers + 2``.
        """
        depths = self.num_layers + 2
        name = param_name.removeprefix(prefix)
        if not param_name.startswith(prefix):
            return depths - 1, depths
        if name.split('.')[0] in ('cls_token', 'pos_embed', 'patch_embed'):
            return 0, depths
        if name.startswith('layers.'):
            return int(name.split('.')[1]) + 1, depths
        return depths - 1, depths

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        modules = [self.patch_embed, self.drop_after_pos]
        if self.rel_pos_bias is not None and self.frozen_stages:
            modules.append(self.rel_pos_bias)
        modules += self.layers[: self.frozen_stages]
        if self.frozen_stages == self.num_layers:
            modules += [
                getattr(self, n) for n in ('ln1', 'ln2') if hasattr(self, n)
            ]
        return modules

    def _freeze(self) -> None:
        for module in self._frozen_modules():
            module.requires_grad_(False)
        if self.frozen_stages >= 0:
            self.cls_token.requires_grad = False
            if self.pos_embed is not None:
                self.pos_embed.requires_grad = False

    def train(self, mode: bool = True) -> BEiTStyleViT:
        """Switch modes; frozen parts stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self
