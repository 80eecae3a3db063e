"""Self-supervised pretraining of vision transformers as an OpenMMLab plugin.

Importing this package checks the installed stack, adds the registries of the
scope ``ropim_mm`` (types are written ``ropim_mm.X`` in a config), makes
MMEngine read checkpoints without running code from them, and adds the names
of our models to ``mmpretrain.get_model``.
"""

from . import stack

stack.check()

from . import registry  # noqa: E402
from .checkpoints import register_safe_loader  # noqa: E402
from .resources import register_model_index, resource_root  # noqa: E402
from .version import __version__  # noqa: E402

register_safe_loader()
register_model_index()

__all__ = ['__version__', 'registry', 'resource_root', 'stack']
