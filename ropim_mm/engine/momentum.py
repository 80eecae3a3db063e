"""Moving a momentum copy after each update of the parameters."""

import math

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ropim_mm.errors import InputError
from ropim_mm.registry import HOOKS


def cosine_momentum(start: float, end: float, step: int, total: int) -> float:
    """From ``start`` at step 0 along half a cosine to ``end`` at ``total``.

    >>> round(cosine_momentum(0.996, 1.0, 50, 100), 6)
    0.998
    """
    return end - (end - start) * (math.cos(math.pi * step / total) + 1) / 2


@HOOKS.register_module()
class MomentumCopyHook(Hook):
    """Calls ``model.update_momentum_copy(m)`` after each optimizer step.

    m follows half a cosine over all iterations of the run. It is a function
    of the iteration's number alone: nothing is saved, and a resumed run
    continues exactly. Iterations that only accumulate gradients leave the
    copy as it is; the one that updates has the m of the first of them.

    Args:
        start: m at the first iteration.
        end: What m approaches at the end of the run.

    Raises:
        InputError: A momentum is outside [0, 1]; before training, the model
            has no momentum copy.
    """

    # After the step, before the checkpoint is written.
    priority = 'NORMAL'

    def __init__(self, start: float = 0.996, end: float = 1.0) -> None:
        for name, value in (('start', start), ('end', end)):
            if not 0 <= value <= 1:
                raise InputError(
                    f'MomentumCopyHook: {name} is {value}; expected a number '
                    'in [0, 1]'
                )
        self.start = start
        self.end = end

    def before_train(self, runner: Runner) -> None:
        """Refuse a model without a copy before the first step."""
        model = self._model(runner)
        if not hasattr(model, 'update_momentum_copy'):
            raise InputError(
                'custom_hooks has a MomentumCopyHook, but '
                f'{type(model).__name__} has no method update_momentum_copy: '
                'remove the hook, or train ropim_mm.ConMIM'
            )

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Update the copy if the optimizer stepped, and log m."""
        wrapper = runner.optim_wrapper
        if not wrapper.should_update():
            return
        # One update is one step of a larger batch, and counts from its start.
        first = runner.iter + 1 - getattr(wrapper, 'steps_in_update', 1)
        momentum = cosine_momentum(
            self.start, self.end, first, runner.max_iters
        )
        self._model(runner).update_momentum_copy(momentum)
        runner.message_hub.update_scalar('train/copy_momentum', momentum)

    @staticmethod
    def _model(runner: Runner):
        model = runner.model
        while is_model_wrapper(model):
            model = model.module
        return model
