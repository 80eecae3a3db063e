"""The BEiT-style encoder that ROPIM and ConMIM share.

Pre-norm blocks with LayerScale, query and value biases, relative position
bias (one table for all blocks in pretraining, one a block in fine-tuning), no
absolute positions by default (BEiT, Bao et al., ICLR 2022). Parameter names
and layouts are those of MMPretrain's ``BEiTViT``; unlike it, this one takes
any image size at run time, resizes tables without the removed
``scipy.interpolate.interp2d`` and expands a shared table under any prefix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.init import trunc_normal_

from ...checkpoints.beit_names import grid_of_table
from ...errors import InputError
from .attention import RelPosAttention
from .patches import Size
from .relative_position import SharedRelativePositionBias, resize_table
from .vit import ViTBackbone

TABLE = 'relative_position_bias_table'
INDEX = 'relative_position_index'
GRID = 'relative_position_grid'


def _cut_normal_(tensor: torch.Tensor, std: float, cut: float) -> None:
    # trunc_normal_ inverts the distribution function in float32: cut far out
    # in the tails, one weight in 2^24 lands on the cut itself, 100 std away.
    if cut > 6 * std:
        nn.init.normal_(tensor, std=std)
    else:
        trunc_normal_(tensor, std=std, a=-cut, b=cut)


class BEiTStyleViT(ViTBackbone):
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
        window_size: For detection in large images, see the base class. Needs
            ``use_rel_pos_bias`` or no bias: a block's table is for its
            window, that of a global block for the whole image.
        global_blocks: Blocks without windows.
        with_cp: Activation checkpointing.
        init_cutoff: Where the normal distribution (std 0.02) of the initial
            weights is cut, in absolute value. The released pretraining
            classes cut at one std, the fine-tuning ones at 2.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE,
            prefix='backbone.')`` loads with a coverage check, see
            :class:`ropim_mm.checkpoints.PretrainedMixin`.
    """

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
        window_size: Size | None = None,
        global_blocks: Sequence[int] = (),
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(
            arch=arch,
            img_size=img_size,
            patch_size=patch_size,
            in_channels=in_channels,
            out_indices=out_indices,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
            qkv_bias=qkv_bias,
            norm_cfg=norm_cfg,
            final_norm=final_norm,
            out_type=out_type,
            frozen_stages=frozen_stages,
            interpolate_mode=interpolate_mode,
            window_size=window_size,
            global_blocks=global_blocks,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
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
        if use_shared_rel_pos_bias and window_size is not None:
            raise InputError(
                'use_shared_rel_pos_bias (one table for all blocks) and '
                f'window_size {window_size} exclude each other: tables of '
                'windows and of the whole image differ. Set '
                'use_rel_pos_bias=True; a shared table that is loaded is then '
                'given to every block.'
            )
        self.use_rel_pos_bias = use_rel_pos_bias
        self.init_cutoff = init_cutoff
        if use_abs_pos_emb:
            tokens = 1 + math.prod(self.patch_resolution)
            self.pos_embed = nn.Parameter(
                torch.zeros(1, tokens, self.embed_dims)
            )
        self.rel_pos_bias = None
        if use_shared_rel_pos_bias:
            self.rel_pos_bias = SharedRelativePositionBias(
                self.patch_resolution, self.num_heads
            )
        self.build_layers(layer_scale_init_value)

    def table_grid(self, index: int) -> tuple[int, int]:
        """The grid (h, w) that a block's table is made for."""
        return self.window_of(index) or self.patch_resolution

    def make_attention(self, index: int) -> nn.Module:
        """Attention with a bias table of its own, or for a shared one."""
        return RelPosAttention(
            self.embed_dims,
            self.num_heads,
            self.table_grid(index) if self.use_rel_pos_bias else None,
            self.qkv_bias,
            self.attn_drop_rate,
            self.drop_rate,
            with_cls_token=self.window_size is None,
        )

    def context(self, grid: tuple[int, int]) -> tuple:
        """The grid and the shared bias, computed once for all blocks."""
        bias = None if self.rel_pos_bias is None else self.rel_pos_bias(grid)
        return grid, bias

    def init_encoder(self) -> None:
        """Truncated normal; output projections scaled down with depth."""
        cut = self.init_cutoff
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

    def shared_by_layers(self) -> list[nn.Module]:
        """The shared table, if there is one."""
        return [] if self.rel_pos_bias is None else [self.rel_pos_bias]

    def adapt_state_dict(self, state_dict: dict, prefix: str = '') -> dict:
        """Fit the weights of another stage or size to this encoder.

        A shared bias table is given to every block where this encoder has
        one a block; tables and absolute positions are resized to this
        encoder's grids; index buffers of another grid are left out.

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
        for key in [k for k in state if k.endswith(TABLE)]:
            if not key.startswith(prefix):
                continue
            target = self._grid_of_key(key[len(prefix) :])
            index_key = key[: -len(TABLE)] + INDEX
            source = grid_of_table(
                len(state[key]),
                state.get(index_key),
                target,
                state.pop(key[: -len(TABLE)] + GRID, None),
            )
            if source != target:
                state[key] = resize_table(state[key], source, target)
            if source != target or self.window_size is not None:
                state.pop(index_key, None)
        return super().adapt_state_dict(state, prefix)

    def _grid_of_key(self, key: str) -> tuple[int, int]:
        kind, _, rest = key.partition('.')
        number = rest.partition('.')[0]
        if kind == 'layers' and number.isdigit():
            return self.table_grid(int(number))
        return self.patch_resolution

    def _adapt_in_place(self, state_dict, prefix, *args) -> None:
        super()._adapt_in_place(state_dict, prefix, *args)
        # A table may also come without its index or grid, which are not
        # weights.
        for name, buffer in self.named_buffers():
            start, _, kind = name.rpartition('.')
            if kind in (INDEX, GRID):
                if f'{prefix}{start}.{TABLE}' in state_dict:
                    state_dict[prefix + name] = buffer
