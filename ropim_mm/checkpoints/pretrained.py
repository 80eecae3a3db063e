"""An ``init_cfg`` whose checkpoint is checked instead of hoped for."""

from collections.abc import Sequence
from typing import Any

from mmengine.model import BaseModule
from mmengine.model.weight_init import PretrainedInit, update_init_info

from .coverage import CoverageReport, load_weights
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
