"""Models that are split over the processes that train them (FSDP).

``strategy = 'fsdp'`` in a config, or ``--cfg-options strategy=fsdp``, gives
each process its rows of every parameter, gradient and moment of the
optimizer. Blocks are put together when they run and taken apart again. The
numbers are those of data-parallel training, within rounding.

This is PyTorch's ``fully_shard`` in :class:`~ropim_mm.engine.PortableRunner`,
not ``FSDPStrategy`` of MMEngine's FlexibleRunner, which wraps the model in the
older ``FullyShardedDataParallel``. There, parameters are cut flat before the
optimizer is built: all have one dimension, so what decays and what does not
cannot be told, and norms for clipping are those of one process. Its resume
gives ``FSDP.optim_state_dict_to_load`` its arguments in the wrong order. Here
parameters keep their names and shapes, which is all that parameter groups,
checks of coverage and checkpoints look at: those are the same as in any other
run, and one can be continued as the other.

A momentum copy is split as the rest: it is as large as the student, equal
rows of both lie on the same process, so that moving it needs no
communication, and it is put together block by block in its forward pass.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from ropim_mm.checkpoints.shards import KEY
from ropim_mm.errors import InputError

try:
    from torch.distributed.fsdp import (
        FSDPModule,
        fully_shard,
        register_fsdp_forward_method,
    )
    from torch.distributed.tensor import DTensor, distribute_tensor
except ImportError:  # before PyTorch 2.6: nothing can be split
    FSDPModule = DTensor = ()
    fully_shard = None

TYPES = ('ddp', 'fsdp')
CHECKPOINTS = ('whole', 'sharded')
# Blocks with a smaller share of the parameters than this are not worth a
# message of their own.
MIN_SHARE = 1 / 200


# Optimizers that treat each number of a parameter alone. Others (LARS, LBFGS,
# Muon) need norms or matrices, and would silently use those of a few rows.
ELEMENTWISE = (
    'Adadelta',
    'Adagrad',
    'Adam',
    'AdamW',
    'Adamax',
    'NAdam',
    'RAdam',
    'RMSprop',
    'SGD',
)


@dataclass(frozen=True)
class Strategy:
    """How the model lies on the processes.

    Attributes:
        type: 'ddp': each process has all of it; 'fsdp': its rows.
        checkpoints: With 'fsdp', 'whole': one plain file; 'sharded': a folder
            to which each process writes its rows, without gathering them.
        shard_over: With 'fsdp', over how many neighbouring processes one copy
            of the model is split, for instance those of a machine; copies
            exchange gradients as in data-parallel training. None: all.
    """

    type: str = 'ddp'
    checkpoints: str = 'whole'
    shard_over: int | None = None


def read_strategy(cfg: Config | Mapping) -> Strategy:
    """The field ``strategy`` of a config.

    Args:
        cfg: A config. ``strategy`` may be missing, one of ``'ddp'`` and
            ``'fsdp'``, or a dict with the fields of :class:`Strategy`.

    Raises:
        InputError: The field is none of these, or others do not fit.
    """
    given = cfg.get('strategy') or {}
    if isinstance(given, str):
        given = dict(type=given)
    known = [field.name for field in fields(Strategy)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise InputError(
            f'strategy has unknown field(s) {", ".join(unknown)}: expected '
            f'{", ".join(known)}'
        )
    strategy = Strategy(**given)
    for name, values in (('type', TYPES), ('checkpoints', CHECKPOINTS)):
        found = getattr(strategy, name)
        if found not in values:
            raise InputError(
                f'strategy.{name} is {found!r}: expected one of '
                f'{", ".join(map(repr, values))}'
            )
    over = strategy.shard_over
    if over is not None and (not isinstance(over, int) or over < 1):
        raise InputError(
            f'strategy.shard_over is {over!r}: expected a number of processes'
        )
    if strategy.type == 'ddp':
        if over is not None:
            raise InputError(
                "strategy.shard_over is set, but strategy.type is 'ddp', where"
                ' each process has the whole model: set strategy.type to '
                "'fsdp', or leave shard_over out"
            )
        if strategy.checkpoints != 'whole':
            raise InputError(
                "strategy.checkpoints is 'sharded', but strategy.type is "
                "'ddp', where each process has the whole model: set "
                "strategy.type to 'fsdp', or leave checkpoints out"
            )
        return strategy
    if fully_shard is None:
        raise InputError(
            f"strategy is 'fsdp', which needs PyTorch 2.6 or newer; found "
            f"{torch.__version__}: install it, or use strategy='ddp'"
        )
    if cfg.get('model_wrapper_cfg'):
        raise InputError(
            "model_wrapper_cfg and strategy='fsdp' both say how to wrap the "
            'model: leave one of them out'
        )
    for hook in cfg.get('custom_hooks') or []:
        kind = hook.get('type') if isinstance(hook, dict) else type(hook)
        name = getattr(kind, '__name__', str(kind))
        if name.rpartition('.')[2] == 'EMAHook':
            raise InputError(
                'custom_hooks has an EMAHook, which copies the model; strategy'
                "='fsdp' splits it. Remove the hook, or use strategy='ddp'"
            )
    return strategy


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that must see whole parameters.

    Raises:
        InputError: It is none of PyTorch's that :data:`ELEMENTWISE` lists.
    """
    kind = type(optimizer)
    if kind not in [getattr(torch.optim, name) for name in ELEMENTWISE]:
        raise InputError(
            f"optim_wrapper.optimizer.type is {kind.__name__}: strategy='fsdp'"
            ' splits parameters, so it needs one that treats each number '
            f"alone, one of PyTorch's {', '.join(ELEMENTWISE)}. Use one of "
            "them, or strategy='ddp'"
        )


def shard_units(model: nn.Module) -> list[nn.Module]:
    """The parts of a model that are put together one at a time.

    They are the elements of module lists (the blocks of encoders and
    decoders) that hold a share of the parameters worth it, the innermost
    first. All else is put together for the whole step.
    """
    total = sum(param.numel() for param in model.parameters())
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    units = []
    for modules in reversed(lists):
        for module in modules:
            size = sum(param.numel() for param in module.parameters())
            if size >= MIN_SHARE * total > 0 and len(modules) > 1:
                units.append(module)
    return units


def shard_model(model: nn.Module, shard_over: int | None = None) -> None:
    """Split the parameters of ``model`` over processes, in place.

    Args:
        model: Whole, equal on all processes, on the device of training.
        shard_over: See :class:`Strategy`.

    Raises:
        InputError: The number of processes is no multiple of ``shard_over``.
    """
    device = next(model.parameters()).device
    processes = dist.get_world_size()
    over = shard_over or processes
    if processes % over:
        raise InputError(
            f'strategy.shard_over is {over}, but there are {processes} '
            'processes: expected a number that divides them, such as the '
            'number of GPUs of a machine'
        )
    if over == processes:
        mesh = init_device_mesh(device.type, (processes,))
    else:
        mesh = init_device_mesh(
            device.type,
            (processes // over, over),
            mesh_dim_names=('copies', 'rows'),
        )
    for unit in shard_units(model):
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        # Another way into our blocks: with windows, as detection does.
        if hasattr(unit, 'on_grid'):
            register_fsdp_forward_method(unit, 'on_grid')
        for module in unit.modules():
            if next(module.parameters(recurse=False), None) is not None:
                module.register_forward_pre_hook(_Opener(unit))
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def compile_units(model: nn.Module, **options) -> int:
    """Compile the units of a split model, between the exchanges.

    Args:
        model: After :func:`shard_model`.
        **options: Of ``torch.compile``.

    Returns:
        int: Number of units.
    """
    units = [m for m in model.modules() if isinstance(m, FSDPModule)]
    units.remove(model)
    for unit in units:
        unit.forward = torch.compile(unit.forward, **options)
    return len(units)


class _Opener:
    """Puts a unit together when a layer inside it runs.

    Some methods take a block apart to save work (LoMaR computes queries of
    masked tokens once; R-MAE averages before a linear map) and never call
    the block itself. It then stays together until the end of the backward
    pass. Where the block was called, it is together already.
    """

    def __init__(self, unit: FSDPModule) -> None:
        self.unit = unit

    def __call__(self, module: nn.Module, args: tuple) -> None:
        # Compiled is what runs inside the unit's own call.
        if not torch.compiler.is_compiling():
            self.unit.unshard()


def plain(tensor: Tensor) -> Tensor:
    """A split tensor, whole, on every process; others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class ShardedState:
    """Checkpoints of a split model, from and to the form of a whole one.

    Args:
        model: After :func:`shard_model`.
        strategy: How it was split and is to be written.

    Attributes:
        sharded: Whether processes write their own rows.
        parts: How many of them hold one copy of the model: the first ones,
            which write.
    """

    def __init__(self, model: nn.Module, strategy: Strategy) -> None:
        self.model = model
        self.sharded = strategy.checkpoints == 'sharded'
        self.parts = strategy.shard_over or dist.get_world_size()
        self._state: dict = {}
        self._moments: dict = {}
        self._iter = 0

    def collect(self, optim_wrapper: OptimWrapper | None, step: int) -> None:
        """Gather what the next checkpoint needs; on all processes.

        Args:
            optim_wrapper: Of the model; None if it is not to be saved.
            step: Updates done; tells files of one checkpoint from others.
        """
        self._iter = step
        for module in self._fsdp_modules():
            module.reshard()
        self._state = self._take(self.model.state_dict())
        self._moments = {}
        if optim_wrapper is not None:
            state = optim_wrapper.state_dict()['state']
            self._moments = {i: self._take(v) for i, v in state.items()}

    def _take(self, tensors: Mapping) -> dict:
        """Split tensors by name: whole on rank 0, or rows and shape."""
        taken = {}
        for name, tensor in tensors.items():
            if not isinstance(tensor, DTensor):
                continue
            tensor = tensor.detach()
            if self.sharded:
                rows = tensor.to_local().cpu().clone()
                taken[name] = (rows, list(tensor.shape))
            else:
                whole = tensor.full_tensor()
                # One tensor at a time is whole on the other processes.
                taken[name] = whole.cpu() if dist.get_rank() == 0 else None
        return taken

    def own_part(self) -> dict:
        """What this process writes beside rank 0's file."""
        return {
            KEY: dict(
                rank=dist.get_rank(),
                world_size=self.parts,
                iter=self._iter,
                state_dict=self._state,
                optimizer=self._moments,
            )
        }

    def fill(self, checkpoint: dict) -> None:
        """Put what was collected into rank 0's checkpoint, then forget it."""
        pairs = [(checkpoint['state_dict'], self._state)]
        if 'optimizer' in checkpoint:
            states = checkpoint['optimizer']['state']
            pairs += [(states[i], v) for i, v in self._moments.items()]
        for tensors, taken in pairs:
            for name, value in taken.items():
                tensors[name] = None if self.sharded else value
        if self.sharded:
            checkpoint.update(self.own_part())
        self.forget()

    def forget(self) -> None:
        """Free what was collected."""
        self._state, self._moments = {}, {}

    @contextmanager
    def splitting_what_is_loaded(self) -> Iterator[None]:
        """Load whole tensors into the model's rows within the block.

        Each module splits its own tensors last, when those that adapt names,
        sizes and tables of a checkpoint have seen them whole.
        """

        def split(module: nn.Module, state_dict: dict, prefix: str, *args):
            for name, own in module.named_parameters(recurse=False):
                given = state_dict.get(prefix + name)
                if isinstance(given, Tensor) and given.shape == own.shape:
                    state_dict[prefix + name] = _rows_of(given, own)

        handles = [
            module.register_load_state_dict_pre_hook(split)
            for module in self.model.modules()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def split_moments(
        self, optim_state: dict, optim_wrapper: OptimWrapper
    ) -> None:
        """The same for the state of an optimizer, as ``state_dict`` gave it.

        Args:
            optim_state: With ``state``, by the number of the parameter.
            optim_wrapper: The one that will load it.
        """
        params = [
            param
            for group in optim_wrapper.param_groups
            for param in group['params']
        ]
        for index, state in optim_state['state'].items():
            own = params[index] if index < len(params) else None
            for key, value in state.items():
                if (
                    isinstance(own, DTensor)
                    and isinstance(value, Tensor)
                    and value.shape == own.shape
                ):
                    state[key] = _rows_of(value, own)

    def open(self) -> None:
        """Put the whole model together until :meth:`close`."""
        for module in self._fsdp_modules():
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()

    def close(self) -> None:
        """Split it again."""
        for module in self._fsdp_modules():
            module.reshard()
            module.set_reshard_after_forward(
                module is not self.model, recurse=False
            )

    def _fsdp_modules(self) -> list[FSDPModule]:
        return [m for m in self.model.modules() if isinstance(m, FSDPModule)]


def _rows_of(whole: Tensor, like: DTensor) -> DTensor:
    split = distribute_tensor(
        whole.to(like.device, like.dtype),
        like.device_mesh,
        like.placements,
        src_data_rank=None,  # each process has the file: nothing is sent
    )
    # The rows are a view, which would keep the whole tensor in memory.
    return split.clone()


class ShardedStateHook(Hook):
    """Saving and validating a split model.

    Args:
        state: Of the model.
    """

    # Before other hooks look at a checkpoint or write one.
    priority = 'HIGHEST'

    def __init__(self, state: ShardedState) -> None:
        self.state = state

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Give rank 0's checkpoint what the processes collected."""
        self.state.fill(checkpoint)

    def before_val_epoch(self, runner: Runner) -> None:
        """Put the model together.

        Images of other sizes take other numbers of passes (sliding windows),
        and a process that runs a block more often would wait for the others.
        """
        self.state.open()

    def after_val_epoch(
        self, runner: Runner, metrics: dict | None = None
    ) -> None:
        """Split it again, before the best checkpoint is written."""
        self.state.close()


def set_gradient_sync(model: nn.Module, sync: bool) -> None:
    """Say whether a split model exchanges gradients in its next backward pass.

    Args:
        model: Any; wrappers for data-parallel training have ``no_sync``.
        sync: False while gradients are accumulated.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(sync)
