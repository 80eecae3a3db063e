"""The registries of ``ropim_mm``: children of MMEngine's roots.

A type is written ``ropim_mm.X`` in the configs of every framework. The first
look-up imports the module in ``locations``, so that ``import ropim_mm`` alone
is enough and stays quick.
"""

from mmengine import registry as root
from mmengine.registry import Registry


def _child(parent: Registry, location: str) -> Registry:
    return Registry(
        parent.name, parent=parent, scope='ropim_mm', locations=[location]
    )


# How a run is made and what happens during it.
RUNNERS = _child(root.RUNNERS, 'ropim_mm.engine')
LOOPS = _child(root.LOOPS, 'ropim_mm.engine')
HOOKS = _child(root.HOOKS, 'ropim_mm.engine')
OPTIMIZERS = _child(root.OPTIMIZERS, 'ropim_mm.engine')
OPTIM_WRAPPERS = _child(root.OPTIM_WRAPPERS, 'ropim_mm.engine')
OPTIM_WRAPPER_CONSTRUCTORS = _child(
    root.OPTIM_WRAPPER_CONSTRUCTORS, 'ropim_mm.engine'
)
PARAM_SCHEDULERS = _child(root.PARAM_SCHEDULERS, 'ropim_mm.engine')
DATA_SAMPLERS = _child(root.DATA_SAMPLERS, 'ropim_mm.engine')

# Samples and what is done to them.
DATASETS = _child(root.DATASETS, 'ropim_mm.datasets')
TRANSFORMS = _child(root.TRANSFORMS, 'ropim_mm.datasets')

# Networks, their initialisation and their parts.
MODELS = _child(root.MODELS, 'ropim_mm.models')
WEIGHT_INITIALIZERS = _child(root.WEIGHT_INITIALIZERS, 'ropim_mm.models')
TASK_UTILS = _child(root.TASK_UTILS, 'ropim_mm.models')

# Numbers and pictures.
METRICS = _child(root.METRICS, 'ropim_mm.evaluation')
VISUALIZERS = _child(root.VISUALIZERS, 'ropim_mm.visualization')
VISBACKENDS = _child(root.VISBACKENDS, 'ropim_mm.visualization')
