"""One optimizer wrapper for every device, one constructor for every model."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from mmengine.hooks import ParamSchedulerHook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn

from ropim_mm.errors import InputError
from ropim_mm.registry import (
    HOOKS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
)

from .deferred import defer_scalar
from .sharding import plain, set_gradient_sync

DTYPES = {
    'bfloat16': torch.bfloat16,
    'float16': torch.float16,
    'float32': torch.float32,
}


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Mixed precision on the device that the model is on, CPU included.

    MMEngine's ``AmpOptimWrapper`` needs a GPU; with this one a config runs
    everywhere. State dicts are exchangeable between the two.

    With ``accumulative_counts`` n, gradients are the mean over n steps. Where
    epochs have a length, a group of steps ends with the epoch, smaller if
    need be: checkpoints are written there, and gradients are not in them.

    Args:
        dtype (str): ``'bfloat16'``, ``'float16'`` (GPU only, with a gradient
            scaler) or ``'float32'`` (no autocast).
        loss_scale (str | float | dict): ``'dynamic'``, a fixed scale, or
            arguments of ``torch.amp.GradScaler``. Read with ``'float16'``
            only.
        **kwargs: ``optimizer``, ``accumulative_counts`` and ``clip_grad`` of
            ``mmengine.optim.OptimWrapper``.

    Raises:
        InputError: If ``dtype`` is unknown, or not to be had on the device of
            the parameters, or ``loss_scale`` is none of the above.
    """

    def __init__(
        self,
        dtype: str = 'bfloat16',
        loss_scale: str | float | dict = 'dynamic',
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if dtype not in DTYPES:
            raise InputError(
                f'optim_wrapper.dtype is {dtype!r}: expected one of '
                f'{", ".join(map(repr, DTYPES))}'
            )
        self.cast_dtype = DTYPES[dtype]
        # Steps in an epoch, if the run has epochs; set by the runner.
        self.epoch_length: int | None = None
        self._first_count = 0
        device = self._device_type
        if dtype == 'float16' and device == 'cpu':
            raise InputError(
                "optim_wrapper.dtype is 'float16', which needs a GPU, but the "
                "model is on the CPU: use 'bfloat16' or 'float32'"
            )
        if (
            dtype == 'bfloat16'
            and device == 'cuda'
            and not torch.cuda.is_bf16_supported()
        ):
            raise InputError(
                "optim_wrapper.dtype is 'bfloat16', which "
                f'{torch.cuda.get_device_name()} does not support: use '
                "'float16' or 'float32'"
            )
        self.loss_scaler: torch.amp.GradScaler | None = None
        self._fixed_scale: float | None = None
        if dtype == 'float16':
            self.loss_scaler = self._make_scaler(device, loss_scale)

    def _make_scaler(
        self, device: str, loss_scale: str | float | dict
    ) -> torch.amp.GradScaler:
        if loss_scale == 'dynamic':
            return torch.amp.GradScaler(device)
        if isinstance(loss_scale, dict):
            return torch.amp.GradScaler(device, **loss_scale)
        if isinstance(loss_scale, (int, float)):
            self._fixed_scale = float(loss_scale)
            return torch.amp.GradScaler(device, init_scale=self._fixed_scale)
        raise InputError(
            f'optim_wrapper.loss_scale is {loss_scale!r}: expected '
            "'dynamic', a number or a dict of GradScaler's arguments"
        )

    @property
    def _device_type(self) -> str:
        return self.optimizer.param_groups[0]['params'][0].device.type

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast the forward pass of ``model`` and delay gradient exchange.

        Args:
            model (nn.Module): The model, wrapped for distributed training,
                split or neither. Its gradients are exchanged only in steps
                that update.
        """
        set_gradient_sync(model, self.should_sync())
        with super().optim_context(model):
            if self.cast_dtype == torch.float32:
                yield
            else:
                with torch.autocast(self._device_type, self.cast_dtype):
                    yield

    def initialize_count_status(
        self, model: nn.Module, init_counts: int, max_counts: int
    ) -> None:
        """Say where training starts and ends.

        Args:
            model (nn.Module): The model.
            init_counts (int): Steps done before.
            max_counts (int): Steps of the whole run.
        """
        super().initialize_count_status(model, init_counts, max_counts)
        self._first_count = init_counts

    def _group(self, step: int) -> tuple[int, int]:
        """First step of the group that ``step`` is in, and of the next."""
        count, length = self._accumulative_counts, self.epoch_length
        epoch = step // length * length if length else 0
        first = epoch + (step - epoch) // count * count
        last = first + count
        if length:
            last = min(last, epoch + length)
        if self._max_counts > 0:
            last = min(last, self._max_counts)
        # A run resumed within a group has the gradients of its rest.
        return max(first, min(self._first_count, step)), last

    @property
    def steps_in_update(self) -> int:
        """Number of steps in the group of the last step that was done."""
        first, last = self._group(max(self._inner_count - 1, 0))
        return last - first

    def should_update(self) -> bool:
        """Whether the last step that was done ends a group."""
        done = self._inner_count
        return done == 0 or done == self._group(done - 1)[1]

    def should_sync(self) -> bool:
        """Whether the step to come ends a group."""
        return self._inner_count + 1 == self._group(self._inner_count)[1]

    def scale_loss(self, loss: torch.Tensor) -> torch.Tensor:
        """Divide ``loss`` (one element) by the steps of its group."""
        first, last = self._group(self._inner_count)
        return loss / (last - first)

    def backward(self, loss: torch.Tensor, **kwargs) -> None:
        """Back-propagate ``loss`` (one element), scaled if need be."""
        if self.loss_scaler is not None:
            loss = self.loss_scaler.scale(loss)
        super().backward(loss, **kwargs)

    def step(self, **kwargs) -> None:
        """Clip the true (unscaled) gradients and update the parameters."""
        if self.loss_scaler is None:
            super().step(**kwargs)
            return
        if self.clip_grad_kwargs:
            self.loss_scaler.unscale_(self.optimizer)
            self._clip_grad()
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update(self._fixed_scale)

    def _clip_grad(self) -> None:
        """Clip, and log the norm without waiting for the device."""
        params = [
            param
            for group in self.optimizer.param_groups
            for param in group['params']
            if param.grad is not None
        ]
        if not params:
            return
        norm = self.clip_func(params, **self.clip_grad_kwargs)
        if norm is not None:  # None when values are clipped, not the norm
            name = f'train/{self.grad_name}'
            defer_scalar(self.message_hub, name, plain(norm))

    def state_dict(self) -> dict:
        """The optimizer's state, with ``loss_scaler`` for float16."""
        state_dict = super().state_dict()
        if self.loss_scaler is not None:
            state_dict['loss_scaler'] = self.loss_scaler.state_dict()
        return state_dict

    def load_state_dict(self, state_dict: dict) -> None:
        """Load what :meth:`state_dict` (or ``AmpOptimWrapper``) gave.

        Args:
            state_dict (dict): Left as it is. A scaler's state is used by
                float16 and ignored by the other precisions, so a run may be
                resumed in another precision.
        """
        state_dict = dict(state_dict)
        scaler = state_dict.pop('loss_scaler', None)
        if self.loss_scaler is not None and scaler:
            self.loss_scaler.load_state_dict(scaler)
        super().load_state_dict(state_dict)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor:
    """Parameter groups by depth and by whether weights decay.

    Serves pretraining and fine-tuning, for any model with a ``backbone``
    (self-supervised, classifier, segmentor, detector) and for a bare
    backbone.

    A parameter of depth ``d`` out of ``n`` gets ``lr * layer_decay_rate **
    (n - 1 - d)``. Depths come from ``backbone.get_layer_depth``; everything
    outside the backbone has the last depth. No weight decay for parameters
    with one dimension or none, for names that end in ``bias``, and for the
    names listed; by default all others decay, tables of relative position bias
    included.
    Frozen parameters are left out.

    Args:
        optim_wrapper_cfg (dict): ``optimizer`` (``lr`` is required) and the
            arguments of the wrapper; ``type`` defaults to
            ``ropim_mm.AutocastOptimWrapper``.
        paramwise_cfg (dict, optional): May hold

            - ``layer_decay_rate`` (float in (0, 1]): default 1.0, the same
              rate everywhere.
            - ``no_decay_names`` (sequence of str): parameters without weight
              decay by the last part of their name, never by a substring.
              Default ``('cls_token', 'pos_embed')``.
            - ``lr_mult`` (dict of str to float): factors on the rate by
              leading parts of the name, for example ``{'head': 2.0}``; the
              longest match counts.

    Raises:
        InputError: If a field is missing, unknown, of the wrong type or
            without effect, or if ``layer_decay_rate < 1`` finds no layers.
    """

    def __init__(
        self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None
    ) -> None:
        wrapper_cfg = dict(optim_wrapper_cfg)
        wrapper_cfg.setdefault('type', 'ropim_mm.AutocastOptimWrapper')
        if 'optimizer' not in wrapper_cfg:
            raise InputError('optim_wrapper.optimizer is missing')
        self.optimizer_cfg = dict(wrapper_cfg.pop('optimizer'))
        self.wrapper_cfg = wrapper_cfg
        if self.optimizer_cfg.get('lr') is None:
            raise InputError(
                'optim_wrapper.optimizer.lr is missing: the rates of the '
                'layers are multiples of it'
            )
        self.base_lr = self.optimizer_cfg['lr']
        self.base_decay = self.optimizer_cfg.get('weight_decay')

        options = dict(paramwise_cfg or {})
        self.decay_rate = options.pop('layer_decay_rate', 1.0)
        self.no_decay_names = options.pop(
            'no_decay_names', ('cls_token', 'pos_embed')
        )
        self.lr_mult = dict(options.pop('lr_mult', {}))
        if options:
            raise InputError(
                'unknown optim_wrapper.paramwise_cfg field(s) '
                f'{sorted(options)}: expected layer_decay_rate, '
                'no_decay_names or lr_mult'
            )
        if not 0 < self.decay_rate <= 1:
            raise InputError(
                'optim_wrapper.paramwise_cfg.layer_decay_rate is '
                f'{self.decay_rate}: expected a number in (0, 1]'
            )
        if isinstance(self.no_decay_names, str):
            raise InputError(
                'optim_wrapper.paramwise_cfg.no_decay_names is the string '
                f'{self.no_decay_names!r}: expected a list of names'
            )

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer of ``model`` and wrap it."""
        model = getattr(model, 'module', model)
        groups = self.param_groups(model)
        self._log(model, groups)

        optimizer = OPTIMIZERS.build(dict(self.optimizer_cfg, params=groups))
        return OPTIM_WRAPPERS.build(
            self.wrapper_cfg, default_args=dict(optimizer=optimizer)
        )

    def param_groups(self, model: nn.Module) -> list[dict]:
        """Sort the trainable parameters of ``model`` into few groups.

        Args:
            model (nn.Module): A model with a ``backbone``, or a backbone.

        Returns:
            list[dict]: By depth, decayed parameters first. Each has
            ``params``, ``param_names``, ``lr``, ``lr_scale``,
            ``weight_decay`` (absent if the optimizer's default holds) and
            ``layer_depth`` (0 everywhere if ``layer_decay_rate`` is 1).
        """
        params = [
            (name, param)
            for name, param in model.named_parameters()
            if param.requires_grad
        ]
        depths, last = self._depths(model, [name for name, _ in params])
        used = set()
        groups: dict[tuple, dict] = {}
        for name, param in params:
            own_name = name.rpartition('.')[2]
            decays = (
                param.ndim > 1
                and own_name != 'bias'
                and own_name not in self.no_decay_names
            )
            prefix = self._longest_prefix(name)
            used.add(prefix)
            scale = self.decay_rate ** (last - depths[name])
            scale *= self.lr_mult.get(prefix, 1.0)
            key = (depths[name], not decays, scale)
            if key not in groups:
                groups[key] = dict(
                    params=[],
                    param_names=[],
                    lr=self.base_lr * scale,
                    lr_scale=scale,
                    layer_depth=depths[name],
                )
                if not decays:
                    groups[key]['weight_decay'] = 0.0
                elif self.base_decay is not None:
                    groups[key]['weight_decay'] = self.base_decay
            groups[key]['params'].append(param)
            groups[key]['param_names'].append(name)
        unused = sorted(set(self.lr_mult) - used)
        if unused:
            raise InputError(
                f'optim_wrapper.paramwise_cfg.lr_mult names {unused}, but no '
                f'trainable parameter of {type(model).__name__} starts so'
            )
        return [groups[key] for key in sorted(groups)]

    def _longest_prefix(self, name: str) -> str | None:
        matches = [
            key for key in self.lr_mult if f'{name}.'.startswith(f'{key}.')
        ]
        return max(matches, key=len, default=None)

    def _depths(
        self, model: nn.Module, names: list[str]
    ) -> tuple[dict[str, int], int]:
        """Depth of each name, and the last depth that there is."""
        if self.decay_rate == 1:
            return dict.fromkeys(names, 0), 0
        backbone, prefix = model, ''
        if hasattr(model, 'backbone'):
            backbone, prefix = model.backbone, 'backbone.'
        field = (
            f'optim_wrapper.paramwise_cfg.layer_decay_rate={self.decay_rate}'
        )
        if not hasattr(backbone, 'get_layer_depth'):
            raise InputError(
                f'{field} needs depths, but {type(backbone).__name__} has no '
                'get_layer_depth(name, prefix): use a backbone that has it, '
                'or a rate of 1.0'
            )
        depths, last = {}, None
        for name in names:
            if name.startswith(prefix):
                depths[name], count = backbone.get_layer_depth(name, prefix)
                last = count - 1
        if last is None or all(depth == last for depth in depths.values()):
            raise InputError(
                f'{field} would change nothing: get_layer_depth of '
                f'{type(backbone).__name__} finds no trainable parameter '
                f'before the last depth among {len(names)}, such as '
                f'{names[:3]}'
            )
        return {name: depths.get(name, last) for name in names}, last

    def _log(self, model: nn.Module, groups: list[dict]) -> None:
        lines = ['depth  lr scale  weight decay  tensors      parameters']
        for group in groups:
            decay = group.get('weight_decay', 'default')
            count = sum(param.numel() for param in group['params'])
            lines.append(
                f'{group["layer_depth"]:>5}  {group["lr_scale"]:>8.4g}  '
                f'{decay:>12}  {len(group["params"]):>7}  {count:>14,}'
            )
        print_log(
            f'Parameter groups of {type(model).__name__}, lr '
            f'{self.base_lr:g}:\n' + '\n'.join(lines),
            logger='current',
            level=logging.INFO,
        )


@HOOKS.register_module()
class UpdateParamSchedulerHook(ParamSchedulerHook):
    """Moves schedules when parameters are updated.

    A group of steps whose gradients are accumulated is one step with a larger
    batch: all of it has the rates of its first step. Afterwards schedules that
    count iterations catch up with the run, so that they end where it does,
    resumed in the middle of a group or not.
    """

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Step the schedules that count iterations."""
        wrapper = runner.optim_wrapper
        if not isinstance(wrapper, AutocastOptimWrapper):
            super().after_train_iter(runner, batch_idx, data_batch, outputs)
        elif wrapper.should_update():
            groups = runner.param_schedulers
            if isinstance(groups, dict):
                groups = groups.values()
            elif groups is not None:
                groups = [groups]
            for scheduler in chain.from_iterable(groups or ()):
                # Not `last_step`, which counts from the schedule's beginning.
                while (
                    not scheduler.by_epoch
                    and scheduler._global_step < runner.iter + 1
                ):
                    scheduler.step()
