"""Self-supervised pretraining of vision transformers as an OpenMMLab plugin.

Importing this package registers the models, datasets and optimizers of
``ropim_mm`` (types are written ``ropim_mm.X``).
"""

from . import registry
from .version import __version__

__all__ = ['__version__', 'registry']
