"""Processes that train together: on GPUs with NCCL, on CPUs with gloo.

MMEngine's own start-up selects a CUDA device whatever the backend, wraps the
model for one, and forks loader workers; none of it works on a machine without
a GPU. :func:`init_process_group` and :class:`PortableRunner` take its place,
and leave the config as it is: the same file runs on both.
"""

import datetime
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
import torch.distributed as dist
from mmengine.dataset import InfiniteSampler
from mmengine.device import get_device
from mmengine.dist import get_rank
from mmengine.model import (
    convert_sync_batchnorm,
    is_model_wrapper,
    revert_sync_batchnorm,
)
from mmengine.optim import OptimWrapper
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.runner import checkpoint as checkpoints
from torch import nn
from torch.utils.data import DataLoader

from ropim_mm.checkpoints.shards import is_sharded, read_shards, shard_file
from ropim_mm.checkpoints.writing import write_atomically
from ropim_mm.errors import InputError
from ropim_mm.registry import RUNNERS

from .optimizer import AutocastOptimWrapper
from .seeding import WorkerSeeds
from .sharding import (
    ShardedState,
    ShardedStateHook,
    Strategy,
    check_optimizer,
    compile_units,
    read_strategy,
    shard_model,
)

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')

# Where each launcher says rank, number of processes and rank on the machine;
# several names where implementations differ.
_VARIABLES = {
    'pytorch': (('RANK',), ('WORLD_SIZE',), ('LOCAL_RANK',)),
    'slurm': (('SLURM_PROCID',), ('SLURM_NTASKS',), ('SLURM_LOCALID',)),
    'mpi': (
        ('OMPI_COMM_WORLD_RANK', 'PMI_RANK'),
        ('OMPI_COMM_WORLD_SIZE', 'PMI_SIZE'),
        ('OMPI_COMM_WORLD_LOCAL_RANK', 'MPI_LOCALRANKID'),
    ),
}
_STARTED_BY = {
    'pytorch': 'tools/dist_train.sh (torchrun)',
    'slurm': 'tools/slurm_train.sh (srun)',
    'mpi': 'mpirun',
}


class LaunchError(InputError):
    """A run cannot start as asked; the message says what to change."""


def process_environment(
    launcher: str, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """What ``torch.distributed`` needs to know, from any launcher.

    Args:
        launcher (str): ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        environ (Mapping): The variables that the launcher has set. A
            ``MASTER_ADDR`` and ``MASTER_PORT`` that are there are kept.

    Returns:
        dict[str, str]: ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``,
        ``MASTER_ADDR`` and ``MASTER_PORT``.

    Raises:
        LaunchError: If a variable is missing.
    """
    if launcher not in _VARIABLES:
        raise LaunchError(
            f'--launcher {launcher}: expected one of {", ".join(LAUNCHERS)}'
        )
    result = {}
    keys = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')
    for key, names in zip(keys, _VARIABLES[launcher], strict=True):
        found = [environ[name] for name in names if name in environ]
        if not found:
            raise LaunchError(
                f'--launcher {launcher}: {" or ".join(names)} is not in the '
                f'environment; start with {_STARTED_BY[launcher]}, or use '
                '--launcher none for one process'
            )
        result[key] = found[0]
    result['MASTER_ADDR'] = environ.get('MASTER_ADDR') or _master(
        launcher, environ, result
    )
    result['MASTER_PORT'] = environ.get('MASTER_PORT') or _port(environ)
    return result


def _master(
    launcher: str, environ: Mapping[str, str], process: dict[str, str]
) -> str:
    if launcher == 'slurm':
        nodes = environ.get('SLURM_STEP_NODELIST') or environ.get(
            'SLURM_NODELIST'
        )
        if nodes:
            return first_host(nodes)
    local_size = environ.get('OMPI_COMM_WORLD_LOCAL_SIZE') or environ.get(
        'MPI_LOCALNRANKS'
    )
    if launcher == 'mpi' and local_size == process['WORLD_SIZE']:
        return '127.0.0.1'
    raise LaunchError(
        f'--launcher {launcher}: set MASTER_ADDR to the name of the first '
        'machine; the environment does not tell it'
    )


def first_host(nodes: str) -> str:
    """First machine of a Slurm node list such as ``'gpu[03-05],gpu9'``.

    Raises:
        LaunchError: If the list must be expanded and ``scontrol`` fails.
    """
    if '[' not in nodes:
        return nodes.split(',')[0]
    if shutil.which('scontrol') is None:
        raise LaunchError(
            f'--launcher slurm: cannot expand the node list {nodes}, '
            'scontrol is not on PATH; set MASTER_ADDR to the first machine'
        )
    done = subprocess.run(
        ['scontrol', 'show', 'hostnames', nodes],
        capture_output=True,
        text=True,
    )
    hosts = done.stdout.split()
    if done.returncode or not hosts:
        raise LaunchError(
            f'--launcher slurm: scontrol show hostnames {nodes} failed: '
            f'{done.stderr.strip()}; set MASTER_ADDR to the first machine'
        )
    return hosts[0]


def _port(environ: Mapping[str, str]) -> str:
    # Two jobs may share a machine; all processes of one agree on its number.
    job = environ.get('SLURM_JOB_ID', '')
    return str(20000 + int(job) % 10000) if job.isdigit() else '29500'


def init_process_group(
    launcher: str,
    backend: str | None = None,
    timeout: float | None = None,
    port: int | None = None,
    **kwargs,
) -> None:
    """Join the other processes; nothing to do if that has happened.

    Args:
        launcher (str): ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        backend (str, optional): Used where there is a GPU (default
            ``'nccl'``); without one it is always ``'gloo'``.
        timeout (float, optional): Seconds after which a process that waits
            for the others gives up.
        port (int, optional): Of the first machine, instead of
            ``MASTER_PORT``.
        **kwargs: For ``torch.distributed.init_process_group``.

    Raises:
        LaunchError: If the environment does not describe the processes, this
            one has no GPU while others have, the port is taken, or the others
            do not come.
    """
    if dist.is_initialized():
        return
    os.environ.update(process_environment(launcher))
    if port is not None:
        os.environ['MASTER_PORT'] = str(port)
    if torch.cuda.is_available():
        torch.cuda.set_device(_cuda_index(launcher))
        backend = backend or 'nccl'
    else:
        backend = 'gloo'
    if timeout is not None:
        kwargs['timeout'] = datetime.timedelta(seconds=timeout)
    try:
        dist.init_process_group(backend, **kwargs)
    except dist.DistError as error:
        raise _cannot_meet(error) from error


def _cannot_meet(error: Exception) -> LaunchError:
    rank = os.environ['RANK']
    where = f'{os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}'
    if 'EADDRINUSE' in str(error) or 'already in use' in str(error):
        return LaunchError(
            f'port {where} is in use by another program, perhaps another '
            'run: set PORT (torchrun) or MASTER_PORT (Slurm, MPI) to a free '
            'one, the same on all machines'
        )
    return LaunchError(
        f'process {rank} of {os.environ["WORLD_SIZE"]} cannot meet the others '
        f'at {where}: start all machines with the same MASTER_ADDR, port and '
        f'number of processes ({str(error).splitlines()[0]})'
    )


def _cuda_index(launcher: str) -> int:
    """This process's GPU; where each is shown only its own, the first."""
    local_rank, count = (
        int(os.environ['LOCAL_RANK']),
        torch.cuda.device_count(),
    )
    if local_rank < count:
        return local_rank
    if launcher != 'pytorch' and count == 1:
        os.environ['LOCAL_RANK'] = '0'  # MMEngine wraps the model for it
        return 0
    raise LaunchError(
        f'process {local_rank} of this machine has no GPU: {count} visible; '
        'start fewer processes, or hide all GPUs to train on the CPU '
        '(CUDA_VISIBLE_DEVICES=-1)'
    )


@contextmanager
def process_group(launcher: str, dist_cfg: dict | None) -> Iterator[None]:
    """Be one of the processes of ``launcher`` within the ``with`` block.

    A process that fails leaves at once, without waiting for the others: they
    may be waiting for it.

    Args:
        launcher (str): One of :data:`LAUNCHERS`.
        dist_cfg (dict, optional): ``env_cfg.dist_cfg`` of the config.
    """
    if launcher == 'none':
        yield
        return
    init_process_group(launcher, **(dist_cfg or {}))
    yield
    # Without the barrier, a process that leaves early takes down those that
    # still talk to it.
    dist.barrier()
    dist.destroy_process_group()


def world_size() -> int:
    """Number of processes; 1 outside a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def adapt_dataloader(cfg: dict) -> dict:
    """Loader settings that hold on this machine.

    Workers persist and memory is pinned unless the config says no, where
    there are workers and a GPU; PyTorch refuses or warns where not.

    Args:
        cfg (dict): Config of a data loader; left as it is.

    Returns:
        dict: A copy with ``persistent_workers`` and ``pin_memory`` set.
    """
    cfg = dict(cfg)
    workers = cfg.get('num_workers', 0) > 0
    cfg['persistent_workers'] = workers and cfg.get('persistent_workers', True)
    cfg['pin_memory'] = torch.cuda.is_available() and cfg.get(
        'pin_memory', True
    )
    if not workers:
        cfg.pop('prefetch_factor', None)
    return cfg


def _check_batches(loader: DataLoader) -> None:
    try:
        batches, images = len(loader), len(loader.dataset)
    except TypeError:  # a stream, which has no length
        return
    # An infinite sampler fills a batch from several rounds through the data.
    endless = images and isinstance(loader.sampler, InfiniteSampler)
    if batches or endless:
        return
    size = getattr(loader.batch_sampler, 'batch_size', None)
    share = f', split over {world_size()} processes,' * (world_size() > 1)
    raise LaunchError(
        f'a data loader has no batch: {images} samples{share} in batches of '
        f'{size}, incomplete ones dropped. Use a smaller '
        'train_dataloader.batch_size (and --auto-scale-lr), or more images.'
    )


@RUNNERS.register_module()
class PortableRunner(Runner):
    """MMEngine's runner for machines with and without GPUs.

    On CPUs, processes talk through gloo, batch norms are not synchronised
    (PyTorch has no such layer for CPUs) and loader workers are spawned: forked
    ones may inherit a lock that a gloo thread holds, and hang.

    Each epoch has random streams of its own, so that a resumed run draws what
    an uninterrupted one would have drawn, see ``engine.seeding``.

    ``strategy`` of the config says whether each process has the whole model
    (data-parallel training, the default) or a part, see ``engine.sharding``.
    """

    # Set once the model is split, which needs its initial weights.
    _sharded: ShardedState | None = None

    @property
    def strategy(self) -> Strategy:
        """How the model lies on the processes.

        Raises:
            InputError: The config's field ``strategy`` is wrong.
        """
        return read_strategy(self.cfg)

    def setup_env(self, env_cfg: dict) -> None:
        """Join the process group before MMEngine would."""
        if self.distributed:
            init_process_group(self.launcher, **env_cfg.get('dist_cfg', {}))
            if dist.get_backend() == 'gloo':
                mp_cfg = dict(
                    env_cfg.get('mp_cfg', {}), mp_start_method='spawn'
                )
                env_cfg = dict(env_cfg, mp_cfg=mp_cfg)
        super().setup_env(env_cfg)

    def wrap_model(
        self, model_wrapper_cfg: dict | None, model: nn.Module
    ) -> nn.Module:
        """Wrap for distributed training, on CPUs without a device index."""
        if self.distributed and self.strategy.type == 'fsdp':
            # Evaluation needs no wrapper; training splits the model later.
            return self._to_device(model)
        if not self.distributed or is_model_wrapper(model):
            return super().wrap_model(model_wrapper_cfg, model)
        cfg = model_wrapper_cfg or dict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=self.cfg.get(
                'find_unused_parameters', False
            ),
            # Gradients lie where they are exchanged, not there and in a copy.
            gradient_as_bucket_view=True,
        )
        if get_device() != 'cpu':
            return super().wrap_model(cfg, model)
        return MODEL_WRAPPERS.build(
            dict(cfg, device_ids=None),
            default_args=dict(
                type='MMDistributedDataParallel',
                module=revert_sync_batchnorm(model),
            ),
        )

    def _to_device(self, model: nn.Module) -> nn.Module:
        device = get_device()
        model = model.to(device)
        if device == 'cpu':
            return revert_sync_batchnorm(model)
        sync_bn = self.cfg.get('sync_bn')
        return convert_sync_batchnorm(model, sync_bn) if sync_bn else model

    def build_optim_wrapper(
        self, optim_wrapper: dict | OptimWrapper
    ) -> OptimWrapper:
        """Build the optimizer, of a model that is split if it shall be.

        Raises:
            InputError: The strategy is 'fsdp', and the optimizer must see
                whole parameters, or its wrapper is not ours (others log a
                norm of the gradients of one process).
        """
        split = self.distributed and self.strategy.type == 'fsdp'
        if split and self._sharded is None:
            # Random weights and pretrained ones are those of a whole model.
            self._init_model_weights()
            shard_model(self.model, self.strategy.shard_over)
            self._sharded = ShardedState(self.model, self.strategy)
            self.register_hook(ShardedStateHook(self._sharded))
        wrapper = super().build_optim_wrapper(optim_wrapper)
        if isinstance(wrapper, AutocastOptimWrapper):
            if isinstance(self._train_loop, EpochBasedTrainLoop):
                wrapper.epoch_length = len(self._train_loop.dataloader)
        elif split:
            raise InputError(
                f'optim_wrapper.type is {type(wrapper).__name__}: '
                "strategy='fsdp' needs ropim_mm.AutocastOptimWrapper (with "
                "dtype='float32' if autocasting is not wanted)"
            )
        if split:
            check_optimizer(wrapper.optimizer)
        return wrapper

    def _init_model_weights(self) -> None:
        if self._sharded is None:
            super()._init_model_weights()

    def _maybe_compile(self, target: str) -> None:
        options = self.cfg.get('compile')
        if self._sharded is None or not options:
            super()._maybe_compile(target)
            return
        # The whole step, which MMEngine compiles, holds the exchange of
        # parameters, and its graphs keep tensors that are freed meanwhile.
        count = compile_units(
            self.model, **(options if isinstance(options, dict) else {})
        )
        self.logger.info(
            f'{count} blocks of the split model are compiled; the first '
            'steps will be slow.'
        )

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict,
        seed: int | None = None,
        diff_rank_seed: bool = False,
    ) -> DataLoader:
        """Build with the settings of :func:`adapt_dataloader`.

        Workers draw as :class:`~ropim_mm.engine.seeding.WorkerSeeds` says,
        unless the config has a ``worker_init_fn``.
        """
        own_seeds = False
        if isinstance(dataloader, dict):
            dataloader = adapt_dataloader(dataloader)
            own_seeds = 'worker_init_fn' not in dataloader
        loader = Runner.build_dataloader(dataloader, seed, diff_rank_seed)
        if own_seeds and seed is not None:
            loader.worker_init_fn = WorkerSeeds(seed, get_rank())
        if loader.generator is None:
            # PyTorch draws a number when workers start. From the generator
            # of the process, it would set the epochs in which persistent
            # workers start apart from the others.
            loader.generator = torch.Generator()
        _check_batches(loader)
        return loader

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        """MMEngine's default hooks, the deferred logger, epochs' seeds.

        MMEngine's ``ParamSchedulerHook`` is replaced by ours, which does the
        same unless gradients are accumulated.
        """
        hooks = dict(hooks or {})
        schedule = hooks.get(
            'param_scheduler', dict(type='ParamSchedulerHook')
        )
        if isinstance(schedule, dict) and schedule == dict(
            type='ParamSchedulerHook'
        ):
            hooks['param_scheduler'] = dict(
                type='ropim_mm.UpdateParamSchedulerHook'
            )
        default = dict(
            runtime_info=dict(type='ropim_mm.DeferredRuntimeInfoHook'),
            epoch_seed=dict(type='ropim_mm.EpochSeedHook'),
        )
        super().register_default_hooks({**default, **hooks})

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        save_optimizer: bool = True,
        *args,
        **kwargs,
    ) -> None:
        """Save; of a split model all processes take part.

        A sharded checkpoint is a folder ``filename``, written beside and
        renamed when it is complete.

        Raises:
            InputError: A sharded checkpoint cannot be written to ``out_dir``:
                it is no local folder, or not the same on all machines.
        """
        arguments = (file_client_args, save_optimizer, *args)
        if self._sharded is None:
            super().save_checkpoint(out_dir, filename, *arguments, **kwargs)
            return
        self._sharded.collect(
            self.optim_wrapper if save_optimizer else None, self.iter
        )
        if not self._sharded.sharded:
            super().save_checkpoint(out_dir, filename, *arguments, **kwargs)
            self._sharded.forget()
            return
        if '://' in str(out_dir):
            raise InputError(
                f'strategy.checkpoints is "sharded", but checkpoints go to '
                f'{out_dir}: expected a local folder; use "whole" there'
            )
        folder = os.path.join(out_dir, filename)
        aside = f'{folder}.partial'
        if self.rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
            os.makedirs(aside)
        dist.barrier()
        if self.rank == 0:
            super().save_checkpoint(
                aside,
                os.path.basename(shard_file('', 0)),
                *arguments,
                **kwargs,
            )
        elif self.rank < self._sharded.parts:
            part = self._sharded.own_part()
            write_atomically(
                shard_file(aside, self.rank), partial(torch.save, part)
            )
        self._sharded.forget()
        dist.barrier()
        if self.rank == 0:
            _complete(aside, folder, self._sharded.parts)
        dist.barrier()

    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable = 'cpu',
        strict: bool = False,
        revise_keys: Sequence[tuple[str, str]] = ((r'^module.', ''),),
    ) -> dict:
        """Load a plain or a sharded checkpoint into a whole or a split model.

        Args:
            filename (str): A file, or the folder of a sharded checkpoint,
                which any number of processes can read.
            map_location (str or callable): As in ``torch.load``; a split
                model and sharded checkpoints are read to the host.
            strict (bool): As MMEngine's.
            revise_keys (sequence): Pairs of pattern and replacement, applied
                to the names in the file.

        Returns:
            dict: The content of the file, the moments of the optimizer split
            if the model is.
        """
        folder = is_sharded(filename)
        if self._sharded is None and not folder:
            return super().load_checkpoint(
                filename, map_location, strict, list(revise_keys)
            )
        if folder:
            checkpoint = read_shards(filename)
        else:
            checkpoint = checkpoints._load_checkpoint(filename, 'cpu')
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        model = (
            self.model.module if is_model_wrapper(self.model) else self.model
        )
        split = nullcontext()
        if self._sharded is not None:
            split = self._sharded.splitting_what_is_loaded()
            if self._resume and 'optimizer' in checkpoint:
                self._sharded.split_moments(
                    checkpoint['optimizer'], self.optim_wrapper
                )
        with split:
            checkpoint = checkpoints._load_checkpoint_to_model(
                model, checkpoint, strict, revise_keys=list(revise_keys)
            )
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}')
        return checkpoint

    def resume(
        self,
        filename: str,
        resume_optimizer: bool = True,
        resume_param_scheduler: bool = True,
        map_location: str | Callable = 'cpu',
    ) -> None:
        """Resume, with the file's tensors read to the host.

        MMEngine reads them to the GPU, where they double the memory of the
        model and the optimizer until the first step.
        """
        self._resume = True  # load_checkpoint splits the moments, too
        super().resume(
            filename, resume_optimizer, resume_param_scheduler, map_location
        )


def _complete(aside: str, folder: str, processes: int) -> None:
    """Give a sharded checkpoint its name, once every part is there."""
    missing = [
        rank
        for rank in range(processes)
        if not os.path.isfile(shard_file(aside, rank))
    ]
    if missing:
        raise InputError(
            f'{aside} has no parts of processes {missing}: the work folder is '
            'not the same folder on all machines. Put it on a shared file '
            'system, or set strategy.checkpoints to "whole".'
        )
    if os.path.isdir(folder):
        shutil.rmtree(folder)
    os.rename(aside, folder)
