"""How a run starts, and what optimizes the parameters."""

from .coverage import CheckpointCoverageHook
from .deferred import DeferredRuntimeInfoHook
from .distributed import PortableRunner
from .momentum import MomentumCopyHook
from .optimizer import (
    AutocastOptimWrapper,
    LayerDecayOptimWrapperConstructor,
    UpdateParamSchedulerHook,
)
from .seeding import EpochSeedHook
from .skipped import SkippedImagesHook
from .waiting import DataWaitHook

__all__ = [
    'AutocastOptimWrapper',
    'CheckpointCoverageHook',
    'DataWaitHook',
    'DeferredRuntimeInfoHook',
    'EpochSeedHook',
    'LayerDecayOptimWrapperConstructor',
    'MomentumCopyHook',
    'PortableRunner',
    'SkippedImagesHook',
    'UpdateParamSchedulerHook',
]
