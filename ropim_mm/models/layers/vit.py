"""What the encoders of all four methods share.

A plain vision transformer (Dosovitskiy et al., ICLR 2021) without opinions on
positions and attention: a method's encoder adds those. Arguments, parameter
names and outputs are those of MMPretrain's ``VisionTransformer``; unlike it,
this one takes any image size at run time and never loads weights unchecked.
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
from torch.utils.checkpoint import checkpoint

from ...checkpoints import PretrainedMixin
from ...checkpoints.beit_names import ARCHS
from ...errors import InputError
from .attention import SelfAttention
from .block import Block
from .patches import PatchEmbed, Size, grid_of, to_pair


def as_map(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Patch tokens (B, h * w, D) as a map (B, D, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, grid).contiguous()


class ViTBackbone(PretrainedMixin, BaseBackbone):
    """Base of the encoders.

    A subclass calls :meth:`__init__`, makes what is its own (``pos_embed``,
    tables) and then calls :meth:`build_layers`. It may override
    :meth:`make_attention`, :meth:`context` and :meth:`init_encoder`.

    Args:
        arch: A key of ``arch_zoo``, or a dict with ``embed_dims``,
            ``num_layers``, ``num_heads`` and ``feedforward_channels``.
        img_size: Side or (height, width) that positions are made for. Other
            sizes work at run time.
        patch_size: Side or (height, width) of a patch.
        in_channels: Channels of the image.
        out_indices: Block(s) whose output is returned; negative from the end.
        drop_rate: Dropout of embeddings, projections and MLPs.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth of the last block, growing linearly
            from 0 at the first.
        qkv_bias: True (queries, keys, values), 'qv_bias' or False.
        norm_cfg: Config of the normalisation layers.
        final_norm: Normalise the last block's output.
        out_type: 'raw' (B, 1 + L, D), 'cls_token' (B, D), 'featmap'
            (B, D, h, w), or 'avg_featmap' (B, D): mean of the patch tokens,
            then a LayerNorm.
        frozen_stages: -1 nothing; 0 the embeddings; n > 0 the first n blocks
            too; all blocks: the norms after them as well.
        interpolate_mode: How absolute positions are resized.
        window_size: For detection in large images (ViTDet): blocks look
            inside windows of so many tokens, a side or (height, width). There
            is no class token then, and ``out_type`` must be 'featmap'. None:
            every block looks everywhere.
        global_blocks: Blocks that look everywhere all the same; negative
            from the end.
        with_cp: Activation checkpointing: keep only the inputs of blocks in
            training and compute the rest again in the backward pass.
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
    # Whether a grid other than the one of img_size needs work in every step.
    resizes_positions = True
    # Names of depth 0 in layer-wise learning rate decay.
    embeddings = ('cls_token', 'pos_embed', 'mask_token', 'patch_embed')

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
        qkv_bias: str | bool = True,
        norm_cfg: dict | None = None,
        final_norm: bool = True,
        out_type: str = 'cls_token',
        frozen_stages: int = -1,
        interpolate_mode: str = 'bicubic',
        window_size: Size | None = None,
        global_blocks: Sequence[int] = (),
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.norm_cfg = norm_cfg or dict(type='LN', eps=1e-6)
        if out_type not in self.out_types:
            raise InputError(
                f'out_type is {out_type!r}; expected one of {self.out_types}'
            )
        self.arch_settings = self._settings(arch)
        self.embed_dims = self.arch_settings['embed_dims']
        self.num_layers = self.arch_settings['num_layers']
        self.num_heads = self.arch_settings['num_heads']
        self.img_size, self.patch_size = to_pair(img_size), to_pair(patch_size)
        self.patch_resolution = grid_of(self.img_size, self.patch_size)
        self.out_type = out_type
        self.out_indices = self._indices(out_indices, 'out_indices')
        self.window_size = (
            None if window_size is None else to_pair(window_size)
        )
        self.global_blocks = self._indices(global_blocks, 'global_blocks')
        self._check_windows()
        self.with_cp = with_cp
        self.drop_rate = drop_rate
        self.attn_drop_rate = attn_drop_rate
        self.drop_path_rate = drop_path_rate
        self.qkv_bias = qkv_bias
        self.interpolate_mode = interpolate_mode
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
        self.pos_embed: nn.Parameter | None = None
        self.drop_after_pos = nn.Dropout(drop_rate)

    def build_layers(self, layer_scale_init_value: float = 0.0) -> None:
        """Make blocks and norms; the last step of a subclass's ``__init__``.

        Args:
            layer_scale_init_value: Start of LayerScale; 0 for none.
        """
        last = max(1, self.num_layers - 1)
        self.layers = nn.ModuleList(
            Block(
                self.embed_dims,
                self.make_attention(i),
                self.arch_settings['feedforward_channels'],
                self.norm_cfg,
                layer_scale_init_value,
                self.drop_path_rate * i / last,
                self.drop_rate,
            )
            for i in range(self.num_layers)
        )
        if self.final_norm:
            self.ln1 = build_norm_layer(self.norm_cfg, self.embed_dims)
        if self.out_type == 'avg_featmap':
            self.ln2 = build_norm_layer(self.norm_cfg, self.embed_dims)
        self._register_load_state_dict_pre_hook(self._adapt_in_place)
        if self.window_size is not None:
            self.cls_token.requires_grad = False  # kept for other stages
        self._freeze()

    def make_attention(self, index: int) -> nn.Module:
        """The attention of a block.

        Args:
            index: Number of the block, from 0.
        """
        return SelfAttention(
            self.embed_dims,
            self.num_heads,
            self.qkv_bias,
            self.attn_drop_rate,
            self.drop_rate,
        )

    def window_of(self, index: int) -> tuple[int, int] | None:
        """The window (height, width) of a block; None if it sees all."""
        return None if index in self.global_blocks else self.window_size

    def context(self, grid: tuple[int, int]) -> tuple:
        """What every block's attention is given besides the tokens.

        Args:
            grid: (h, w) of the patches.
        """
        return ()

    def init_encoder(self) -> None:
        """Give all parameters their initial values, as the method does."""

    def _settings(self, arch: str | dict) -> dict:
        if isinstance(arch, str) and arch in self.arch_zoo:
            return dict(zip(self.arch_keys, self.arch_zoo[arch], strict=True))
        if isinstance(arch, dict) and set(self.arch_keys) == set(arch):
            return dict(arch)
        raise InputError(
            f'arch is {arch!r}; expected one of {tuple(self.arch_zoo)} or a '
            f'dict with exactly the keys {self.arch_keys}'
        )

    def _indices(
        self, indices: int | Sequence[int], field: str
    ) -> tuple[int, ...]:
        if isinstance(indices, int):
            indices = (indices,)
        depth = self.num_layers
        for i in indices:
            if not -depth <= i < depth:
                raise InputError(
                    f'{field} holds {i}; this encoder has {depth} '
                    f'blocks, expected {-depth} to {depth - 1}'
                )
        return tuple(i % depth for i in indices)

    def _check_windows(self) -> None:
        if self.window_size is None:
            if self.global_blocks:
                raise InputError(
                    f'global_blocks is {self.global_blocks}, but window_size '
                    'is None: all blocks look everywhere. Set window_size, or '
                    'leave global_blocks out.'
                )
            return
        if min(self.window_size) < 1:
            raise InputError(
                f'window_size is {self.window_size}; expected at least one '
                'token a side'
            )
        if self.out_type != 'featmap':
            raise InputError(
                f'window_size is {self.window_size} and out_type '
                f"{self.out_type!r}; expected 'featmap': in windows there is "
                'no class token, and no norm after the mean'
            )

    def init_weights(self) -> None:
        """Initialise as released, then load ``init_cfg``'s checkpoint.

        A second call does nothing, as everywhere in MMEngine.
        """
        if not self.is_init:
            with torch.no_grad():
                self.init_encoder()
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
        if embed is not None:
            x = embed(x)
        if self.window_size is not None:
            return self.encode_grid(x, grid)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        positions = self.positions(grid)
        if positions is not None:
            x = x + positions
        return self.encode(self.drop_after_pos(x), grid, *self.context(grid))

    def positions(self, grid: tuple[int, int]) -> torch.Tensor | None:
        """Absolute positions (1, 1 + L, D) of a grid (h, w), if there are."""
        self._warn_of_resizing(grid)
        if self.pos_embed is None:
            return None
        return resize_pos_embed(
            self.pos_embed,
            self.patch_resolution,
            grid,
            mode=self.interpolate_mode,
            num_extra_tokens=1,
        )

    def encode(
        self, x: torch.Tensor, grid: tuple[int, int], *context
    ) -> tuple[torch.Tensor, ...]:
        """Blocks, final norm and output format.

        Args:
            x: (B, 1 + N, D), class token first.
            grid: (h, w), read where the output is a 'featmap' (N = h * w).
            context: Given to the attention of each block.

        Returns:
            One tensor for each of ``out_indices``, shaped by ``out_type``.
        """
        outs = []
        for i, layer in enumerate(self.layers):
            x = self._run(layer, x, *context)
            if i == self.num_layers - 1 and self.final_norm:
                x = self.ln1(x)
            if i in self.out_indices:
                outs.append(self._format(x, grid))
        return tuple(outs)

    def encode_grid(
        self, x: torch.Tensor, grid: tuple[int, int]
    ) -> tuple[torch.Tensor, ...]:
        """Blocks in windows and global ones, without a class token.

        Args:
            x: (B, h * w, D), embedded patches, row-major.
            grid: (h, w).

        Returns:
            (B, D, h, w) for each of ``out_indices``.
        """
        positions = self.positions(grid)
        if positions is not None:
            x = x + positions[:, self.num_extra_tokens :]
        x = self.drop_after_pos(x)
        outs = []
        for i, layer in enumerate(self.layers):
            x = self._run(layer.on_grid, x, grid, self.window_of(i))
            if i == self.num_layers - 1 and self.final_norm:
                x = self.ln1(x)
            if i in self.out_indices:
                outs.append(as_map(x, grid))
        return tuple(outs)

    def _run(self, part: Callable, *args) -> torch.Tensor:
        if self.with_cp and self.training and torch.is_grad_enabled():
            return checkpoint(part, *args, use_reentrant=False)
        return part(*args)

    def _warn_of_resizing(self, grid: tuple[int, int]) -> None:
        if (
            self.training
            and self.resizes_positions
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
            return as_map(patches, grid)
        return self.ln2(patches.mean(dim=1))

    # -- loading ----------------------------------------------------------

    def adapt_state_dict(self, state_dict: dict, prefix: str = '') -> dict:
        """Fit the weights of another stage or size to this encoder.

        Absolute positions are resized to this encoder's grid.

        Args:
            state_dict: Names to tensors; not changed.
            prefix: What precedes this encoder's names.

        Returns:
            A new dict; keys outside ``prefix`` are passed on.
        """
        return self._adapt_pos_embed(dict(state_dict), f'{prefix}pos_embed')

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
        if name.split('.')[0] in self.embeddings:
            return 0, depths
        if name.startswith('layers.'):
            return int(name.split('.')[1]) + 1, depths
        return depths - 1, depths

    def shared_by_layers(self) -> list[nn.Module]:
        """Modules of which every block makes use; frozen with the first."""
        return []

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        modules = [self.patch_embed, self.drop_after_pos]
        if self.frozen_stages:
            modules += self.shared_by_layers()
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

    def train(self, mode: bool = True) -> ViTBackbone:
        """Switch modes; frozen parts stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self
