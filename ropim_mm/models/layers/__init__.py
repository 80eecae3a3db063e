"""What the methods share, one file a concept."""

from ...checkpoints.beit_names import grid_of_table
from .attention import RelPosAttention, SelfAttention, attend
from .beit import BEiTStyleViT
from .block import Block, FeedForward, add_branch
from .irpe import IRPEAttention, bucket_index, piecewise_index
from .momentum import MomentumCopy
from .patches import (
    PatchEmbed,
    grid_of,
    normalize_patches,
    patchify,
    to_pair,
    unpatchify,
)
from .relative_position import (
    relative_position_index,
    resize_table,
    table_rows,
)
from .sketch import CountSketch, make_sketch, num_buckets, sample_sketch
from .token_masks import sample_cell_masks
from .vit import ViTBackbone
from .windows import sample_windows, window_patches

__all__ = [
    'BEiTStyleViT',
    'Block',
    'CountSketch',
    'FeedForward',
    'IRPEAttention',
    'MomentumCopy',
    'PatchEmbed',
    'RelPosAttention',
    'SelfAttention',
    'ViTBackbone',
    'add_branch',
    'attend',
    'bucket_index',
    'grid_of',
    'grid_of_table',
    'make_sketch',
    'normalize_patches',
    'num_buckets',
    'patchify',
    'piecewise_index',
    'relative_position_index',
    'resize_table',
    'sample_cell_masks',
    'sample_sketch',
    'sample_windows',
    'table_rows',
    'to_pair',
    'unpatchify',
    'window_patches',
]
