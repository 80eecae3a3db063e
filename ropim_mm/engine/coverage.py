"""Stops a run whose checkpoint does not cover the model."""

import logging
from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch.distributed.fsdp import FullyShardedDataParallel

from ..checkpoints.coverage import (
    CoverageError,
    compare,
    find_state_dict,
    matches_prefix,
)
from ..registry import HOOKS


@HOOKS.register_module()
class CheckpointCoverageHook(Hook):
    """Checks whole-model checkpoints before they are loaded.

    MMEngine loads ``load_from``, a checkpoint to resume and the checkpoint
    of ``tools/test.py`` non-strictly: tensors that the file lacks keep their
    random values, with a warning. Here the run stops, with the lists, when

    * a tensor of the model is missing or has another shape, or
    * tensors are left over in the backbone, as when a deep model's
      checkpoint is given to a shallow one.

    What is left over elsewhere (a head that this model does not have) is
    reported as a warning.

    Args:
        allow_missing: Prefixes of tensors that the file need not have, as
            ``('head.', )`` to load a backbone and a neck by ``load_from``.
    """

    # Before MMEngine's EMAHook (NORMAL), which already loads the averages.
    priority = 'HIGH'

    def __init__(self, allow_missing: Sequence[str] = ()) -> None:
        self.allow_missing = tuple(allow_missing)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the checkpoint with the model.

        Raises:
            CoverageError: They do not fit.
            CheckpointError: The checkpoint holds no weights.
        """
        model = runner.model
        if isinstance(model, FullyShardedDataParallel):
            # Its names and shapes are those of shards.
            print_log(
                'The coverage of the checkpoint is not checked: the model is '
                'sharded.',
                logger='current',
                level=logging.WARNING,
            )
            return
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        source = getattr(runner, '_load_from', None) or 'the checkpoint'
        tensors = find_state_dict(checkpoint, source)
        superfluous: list[str] = []
        backbones: list[str] = []
        for name, module in model.named_modules():
            if not hasattr(module, 'adapt_state_dict'):
                continue
            prefix = f'{name}.' if name else ''
            tensors = module.adapt_state_dict(tensors, prefix)
            backbones.append(name)
            superfluous += [
                prefix + key
                for key in getattr(module, 'pretraining_only_keys', ())
            ]
        report = compare(
            model,
            tensors,
            source=source,
            fresh_keys=self.allow_missing,
            superfluous_keys=superfluous,
        )
        wrong = [n for n in report.unexpected if matches_prefix(n, backbones)]
        if report.missing or report.mismatched or wrong:
            raise CoverageError(
                report,
                'A checkpoint given by load_from, --resume or to tools/'
                'test.py must fit the whole model. To start from a pretrained '
                'encoder, use model.backbone.init_cfg=dict(type="Pretrained", '
                'checkpoint=FILE, prefix="backbone."). To go without some '
                'tensors on purpose, list the beginnings of their names in '
                'allow_missing of CheckpointCoverageHook.',
            )
        print_log(str(report), logger='current')
        if report.unexpected:
            print_log(
                f'{source} has tensors that the model has no use for: '
                f'{", ".join(report.unexpected)}',
                logger='current',
                level=logging.WARNING,
            )
