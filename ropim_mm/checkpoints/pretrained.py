"""An ``init_cfg`` whose checkpoint is checked instead of hoped for."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.model.weight_init import PretrainedInit, update_init_info
from mmengine.registry import MODELS, Registry

from .coverage import CoverageReport, load_weights, prefixes_of
from .reading import CheckpointError, read_checkpoint

_KEYS = ('checkpoint', 'prefix', 'map_location', 'skip_keys', 'trust')


def _is_pretrained(cfg: dict) -> bool:
    kind = cfg.get('type')
    return kind is PretrainedInit or kind in (
        'Pretrained',
        'PretrainedInit',
        'mmengine.Pretrained',
    )


class PretrainedMixin:
    """For backbones: loads ``init_cfg``'s checkpoint with a coverage check.

    Inherit it before the base class. An entry

    .. code-block:: python

        init_cfg=dict(
            type='Pretrained',
            checkpoint='FILE',
            prefix='backbone.',  # what the encoder's names begin with
            map_location='cpu',
            skip_keys=('patch_embed.', ),  # left as initialised
            trust=False,  # unpickle the file even if that runs code
        )

    is loaded last, after all other initialisation, by
    :func:`~ropim_mm.checkpoints.coverage.load_weights`. MMEngine's own
    initialiser of that name loads whatever happens to match and goes on.

    Where a whole model is loaded (``load_from``, ``init_cfg`` of the model,
    ``mmpretrain.get_model(..., pretrained=FILE)``, ``load_state_dict``),
    weights without any tensor of the backbone are refused: MMEngine would
    warn and train from random values.
    """

    def init_weights(self) -> None:
        """Initialise, then load the checkpoint of ``init_cfg``, if any.

        Raises:
            CheckpointError: The config names no file, or the file does not
                fit (:class:`CoverageError`) or cannot be read.
        """
        given = self.init_cfg
        configs = [given] if isinstance(given, dict) else list(given or [])
        pretrained = [cfg for cfg in configs if _is_pretrained(cfg)]
        if not pretrained or self.is_init:
            super().init_weights()
            return
        if not hasattr(self, '_params_init_info'):
            # The outermost module keeps the record of who initialised what
            # and prints it when it is done, which here is too early. Under
            # a parent this module is never the outermost one.
            parent = BaseModule()
            parent.add_module('backbone', self)
            try:
                parent.init_weights()
            finally:
                # Left behind after an error, it would look like a parent's.
                for module in parent.modules():
                    module.__dict__.pop('_params_init_info', None)
            return
        self.init_cfg = [cfg for cfg in configs if not _is_pretrained(cfg)]
        try:
            super().init_weights()
            for cfg in pretrained:
                self._load_pretrained(**_checked(cfg, type(self).__name__))
        except BaseException:
            self.is_init = False
            raise
        finally:
            self.init_cfg = given

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, *args: Any
    ) -> None:
        # Whether the load is strict, neither PyTorch nor MMEngine tells.
        self._refuse_foreign(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _checkpoint_filter(
        self, state_dict: dict, prefix: str, *args: Any
    ) -> None:
        """MMPretrain's classifiers call this with all tensors of a file.

        Only they: elsewhere the backbone is shown nothing but what is under
        its own prefix, and the error cannot name the others.
        """
        self._refuse_foreign(state_dict, f'{prefix}backbone.')

    def _refuse_foreign(self, state_dict: Mapping, prefix: str) -> None:
        own = [name for name, _ in self.named_parameters()]
        if not own or any(name.endswith('_flat_param') for name in own):
            return  # sharded: the names are not those of a file
        if any(prefix + name in state_dict for name in own):
            return
        if not (prefix or state_dict):
            return  # nothing is loaded, and nothing is what is asked for
        raise CheckpointError(
            f'The weights hold no tensor of {type(self).__name__} under the '
            f'prefix {prefix!r}, as {prefix}{own[0]}. Found '
            f'{prefixes_of(state_dict)}. To load an encoder alone, use init_'
            'cfg=dict(type="Pretrained", checkpoint=FILE, prefix=...) of the '
            'backbone, not of the model; to load another part alone, load it '
            'into that part, as by model.head.load_state_dict.'
        )

    def _load_pretrained(
        self,
        checkpoint: str,
        prefix: str | None = None,
        map_location: Any = 'cpu',
        skip_keys: Sequence[str] = (),
        trust: bool = False,
    ) -> CoverageReport:
        content = read_checkpoint(checkpoint, map_location, trust)
        report = load_weights(
            self,
            content,
            source=checkpoint,
            prefix=prefix or '',
            skip_keys=tuple(skip_keys),
        )
        update_init_info(
            self, init_info=f'Pretrained: {report.counts()} from {checkpoint}'
        )
        return report


def _checked(cfg: dict, owner: str) -> dict:
    """The arguments in a ``Pretrained`` config, without its type."""
    arguments = {key: value for key, value in cfg.items() if key != 'type'}
    unknown = sorted(set(arguments) - set(_KEYS))
    if unknown:
        raise CheckpointError(
            f'init_cfg of {owner}, type Pretrained, has the keys '
            f'{", ".join(unknown)}. Expected only {", ".join(_KEYS)}.'
        )
    if not arguments.get('checkpoint'):
        raise CheckpointError(
            f'init_cfg of {owner} is of type Pretrained and names no file: '
            f'checkpoint is {arguments.get("checkpoint")!r}. Give one: '
            '--cfg-options model.backbone.init_cfg.checkpoint=FILE (or '
            'model.backbone.init_cfg=None to start from random weights).'
        )
    return arguments


def unchecked_pretrained(cfg: Config) -> list[str]:
    """Where a model config loads a checkpoint without a coverage check.

    MMEngine's ``Pretrained`` loads what happens to match. Only modules with
    :class:`PretrainedMixin` stop when a tensor is missing.

    Args:
        cfg: A whole config; ``default_scope`` (``'mmpretrain'`` if it is not
            set) says whose modules unscoped types are.

    Returns:
        list[str]: Dotted paths, as ``'model.init_cfg'``; empty if all is
        checked.
    """
    scope = cfg.get('default_scope') or 'mmpretrain'
    with MODELS.switch_scope_and_registry(scope) as registry:
        return list(_unchecked(cfg.get('model'), 'model', registry))


def _unchecked(node: Any, path: str, registry: Registry) -> Iterator[str]:
    if isinstance(node, (list, tuple)):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        return
    given = node.get('init_cfg')
    configs = given if isinstance(given, (list, tuple)) else [given]
    pretrained = any(
        isinstance(c, dict) and _is_pretrained(c) for c in configs
    )
    if pretrained and not _checks(node.get('type'), registry):
        yield f'{path}.init_cfg'
    # MMPretrain's older spelling of the same.
    if path == 'model' and node.get('pretrained'):
        yield 'model.pretrained'
    for key, child in node.items():
        if key != 'init_cfg':
            yield from _unchecked(child, f'{path}.{key}', registry)


def _checks(kind: Any, registry: Registry) -> bool:
    if isinstance(kind, str):
        kind = registry.get(kind)
    return isinstance(kind, type) and issubclass(kind, PretrainedMixin)
