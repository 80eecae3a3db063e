"""What the methods share, one file a concept."""

from ...checkpoints.beit_names import grid_of_table
from .attention import RelPosAttention, attend
from .beit import BEiTStyleViT
from .patches import PatchEmbed, grid_of, patchify, to_pair, unpatchify
from .relative_position import (
    relative_position_index,
    resize_table,
    table_rows,
)
from .sketch import CountSketch, make_sketch, num_buckets, sample_sketch

__all__ = [
    'BEiTStyleViT',
    'CountSketch',
    'PatchEmbed',
    'RelPosAttention',
    'attend',
    'grid_of',
    'grid_of_table',
    'make_sketch',
    'num_buckets',
    'patchify',
    'relative_position_index',
    'resize_table',
    'sample_sketch',
    'table_rows',
    'to_pair',
    'unpatchify',
]
