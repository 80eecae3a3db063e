"""How a run starts, and what optimizes the parameters."""

from .deferred import DeferredRuntimeInfoHook
from .distributed import PortableRunner
from .optimizer import AutocastOptimWrapper, LayerDecayOptimWrapperConstructor

__all__ = [
    'AutocastOptimWrapper',
    'DeferredRuntimeInfoHook',
    'LayerDecayOptimWrapperConstructor',
    'PortableRunner',
]
