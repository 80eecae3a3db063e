"""How a run starts, and what optimizes the parameters."""

from .coverage import CheckpointCoverageHook
from .deferred import DeferredRuntimeInfoHook
from .distributed import PortableRunner
from .optimizer import AutocastOptimWrapper, LayerDecayOptimWrapperConstructor

__all__ = [
    'AutocastOptimWrapper',
    'CheckpointCoverageHook',
    'DeferredRuntimeInfoHook',
    'LayerDecayOptimWrapperConstructor',
    'PortableRunner',
]
