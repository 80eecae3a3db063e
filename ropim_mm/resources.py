"""Where the configs, the tools and the model index are."""

from functools import cache
from pathlib import Path


def resource_root() -> Path:
    """The folder that holds ``configs/``, ``tools/`` and ``model-index.yml``.

    That is ``ropim_mm/.mim`` where a wheel was installed, and the root of the
    source tree in a checkout or an editable install.

    Raises:
        FileNotFoundError: Neither is there.
    """
    package = Path(__file__).resolve().parent
    candidates = (package / '.mim', package.parent)
    for root in candidates:
        if (root / 'model-index.yml').is_file():
            return root
    raise FileNotFoundError(
        'the configs of ropim_mm are missing: no model-index.yml in '
        f'{" or ".join(map(str, candidates))}. Install ropim_mm again'
    )


@cache
def register_model_index() -> None:
    """Add our models to ``mmpretrain.get_model`` and ``list_models``.

    A second call does nothing: MMPretrain refuses a name it has already.
    """
    from mmpretrain.apis.model import ModelHub

    root = resource_root()
    ModelHub.register_model_index(root / 'model-index.yml', config_prefix=root)
