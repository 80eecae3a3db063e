"""From a config file to a run: what ``tools/train.py`` and ``test.py`` do.

The functions change the loaded config, never the file. What depends on the
machine is left to ``engine.distributed``, so that the config that a run
writes to its work folder can be used on another one.
"""

import inspect
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import mmengine
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.evaluator import DumpResults
from mmengine.registry import DATASETS, RUNNERS, Registry
from mmengine.runner import Runner, find_latest_checkpoint

from ropim_mm import stack
from ropim_mm.checkpoints.pretrained import unchecked_pretrained
from ropim_mm.checkpoints.reading import trust_checkpoint
from ropim_mm.checkpoints.shards import is_sharded
from ropim_mm.errors import InputError

from .distributed import LaunchError, PortableRunner, world_size
from .sharding import read_strategy

# The hook that draws predictions, and the argument that switches it on.
_DRAWING = {
    'mmpretrain': ('mmpretrain.VisualizationHook', 'enable'),
    'mmseg': ('mmseg.SegVisualizationHook', 'draw'),
    'mmdet': ('mmdet.DetVisualizationHook', 'draw'),
}
_VISUALIZER = {
    'mmpretrain': 'mmpretrain.UniversalVisualizer',
    'mmseg': 'mmseg.SegLocalVisualizer',
    'mmdet': 'mmdet.DetLocalVisualizer',
}
# Names of the initialiser that reads a file.
_PRETRAINED = ('Pretrained', 'PretrainedInit', 'mmengine.Pretrained')


@contextmanager
def report_errors() -> Iterator[None]:
    """Print errors that the user can cure as one message, with status 1.

    All others keep their traceback. Of an error in a loader's worker, which
    comes with the worker's traceback, only the message is printed.
    """
    try:
        yield
    except (InputError, stack.StackError) as error:
        rank = os.environ.get('RANK') or os.environ.get('SLURM_PROCID')
        where = f' [process {rank}]' if rank else ''
        sys.stdout.flush()
        message = _own_message(error)
        print(f'error{where}: {message}', file=sys.stderr, flush=True)
        raise SystemExit(1) from None


def _own_message(error: Exception) -> str:
    text = str(error)
    if not text.startswith('Caught ') or 'Traceback (' not in text:
        return text
    # PyTorch hands on `traceback.format_exception` of the worker, which ends
    # in the qualified name of the error and its message.
    name = rf'^[\w.]*\b{type(error).__name__}: '
    return re.split(name, text, flags=re.MULTILINE)[-1].rstrip()


def load_config(path: str, options: dict | None = None) -> Config:
    """Read a config of any framework and merge command line options.

    Args:
        path (str): The config file.
        options (dict, optional): ``--cfg-options`` as parsed by MMEngine's
            ``DictAction``.

    Returns:
        Config: With ``default_scope`` set (``'mmpretrain'`` if it is not).

    Raises:
        LaunchError: If a file is missing, or an option does not fit.
    """
    if not os.path.isfile(path):
        raise LaunchError(
            f'config file {path} not found (current folder {os.getcwd()})'
        )
    try:
        cfg = Config.fromfile(path)
    except FileNotFoundError as error:
        raise LaunchError(f'config {path}: {error}') from error
    try:
        # MMEngine takes `_delete_` out of what it is given.
        cfg.merge_from_dict(deepcopy(options or {}))
    except (KeyError, TypeError, IndexError) as error:
        raise LaunchError(
            f'--cfg-options does not fit {path}: {error}'
        ) from error
    if cfg.get('default_scope') is None:
        cfg.default_scope = 'mmpretrain'
    if cfg.default_scope == 'mmdet':
        stack.require_detection()
    elif cfg.default_scope == 'mmseg':
        stack.require_segmentation()
    return cfg


def prepare_train(
    cfg: Config,
    *,
    work_dir: str | None = None,
    resume: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    validate: bool = True,
    launcher: str = 'none',
    trust: bool = False,
) -> list[str]:
    """Apply the options of ``tools/train.py`` to a config, in place.

    Must run inside the process group, if there is one.

    Args:
        cfg (Config): From :func:`load_config`.
        work_dir (str, optional): Else ``cfg.work_dir``, else
            ``work_dirs/<name of the config file>``.
        resume (str, optional): ``'auto'``, a checkpoint file or the folder of
            a sharded one.
        amp (bool): Train with ``ropim_mm.AutocastOptimWrapper``.
        auto_scale_lr (bool): Fit the rates to the actual batch.
        validate (bool): Whether to validate while training.
        launcher (str): How the processes were started.
        trust (bool): Whether checkpoints named here or in the config may run
            code when read.

    Returns:
        list[str]: What was decided, for the log.

    Raises:
        LaunchError: If a field or a file is missing or does not fit.
    """
    notes = []
    for field in ('model', 'train_cfg', 'train_dataloader', 'optim_wrapper'):
        if cfg.get(field) is None:
            raise LaunchError(
                f'{cfg.filename} has no {field}: it cannot be trained'
            )
    cfg.launcher = launcher
    _check_strategy(cfg)
    _set_work_dir(cfg, work_dir)
    if not validate:
        for field in ('val_cfg', 'val_dataloader', 'val_evaluator'):
            cfg[field] = None
    if amp:
        use_autocast(cfg)
    if auto_scale_lr or cfg.get('auto_scale_lr', {}).get('enable', False):
        notes.append(scale_learning_rate(cfg, world_size()))
    notes += set_resume(cfg, resume)
    if trust:
        for checkpoint in _named_checkpoints(cfg):
            trust_checkpoint(checkpoint)
    if _is_ours(cfg.model):
        _require_all_weights(cfg)
    if _is_ours(cfg.model.get('backbone')):
        _refuse_unchecked(cfg)
    _set_collate(cfg)
    for field in ('train_dataloader', 'val_dataloader'):
        check_data(cfg, field)
    check_annotations(cfg, 'val_evaluator')
    return notes


def prepare_test(
    cfg: Config,
    checkpoint: str,
    *,
    work_dir: str | None = None,
    show_dir: str | None = None,
    tta: bool = False,
    launcher: str = 'none',
    trust: bool = False,
) -> None:
    """Apply the options of ``tools/test.py`` to a config, in place.

    Args:
        cfg (Config): From :func:`load_config`.
        checkpoint (str): The file, or folder of shards, to evaluate.
        work_dir (str, optional): As in :func:`prepare_train`.
        show_dir (str, optional): Folder for pictures of the predictions.
        tta (bool): Average over the augmentations of ``cfg.tta_pipeline``.
        launcher (str): How the processes were started.
        trust (bool): Whether ``checkpoint`` may run code when read.

    Raises:
        LaunchError: If a field or a file is missing or does not fit.
    """
    for field in ('model', 'test_cfg', 'test_dataloader', 'test_evaluator'):
        if cfg.get(field) is None:
            raise LaunchError(
                f'{cfg.filename} has no {field}: it cannot be tested'
            )
    if not _is_checkpoint(checkpoint):
        raise LaunchError(
            f'checkpoint {checkpoint} not found (current folder {os.getcwd()})'
        )
    cfg.launcher = launcher
    cfg.load_from, cfg.resume = checkpoint, False
    if trust:
        trust_checkpoint(checkpoint)
    _set_work_dir(cfg, work_dir)
    _set_collate(cfg)
    check_data(cfg, 'test_dataloader')
    check_annotations(cfg, 'test_evaluator')
    _require_all_weights(cfg)
    if show_dir is not None:
        _show_predictions(cfg, os.path.abspath(show_dir))
    if tta:
        _use_tta(cfg)


def train(cfg: Config, notes: Sequence[str] = ()) -> None:
    """Build the runner of a prepared config and train.

    Args:
        cfg (Config): From :func:`prepare_train`.
        notes (sequence of str): Lines for the log.
    """
    runner = _build_runner(cfg)
    batch = global_batch_size(cfg, world_size())
    for note in (*notes, f'Training {describe(cfg)}, {batch} images a step'):
        runner.logger.info(note)
    runner.train()


def test(
    cfg: Config, out: str | None = None, out_item: str | None = None
) -> dict:
    """Build the runner of a prepared config and evaluate.

    Args:
        cfg (Config): From :func:`prepare_test`.
        out (str, optional): File for metrics (``.json``, ``.yaml``,
            ``.pkl``) or predictions (``.pkl``).
        out_item (str, optional): ``'metrics'`` or ``'pred'``. By default a
            ``.pkl`` file gets predictions, any other the metrics.

    Returns:
        dict: The metrics.

    Raises:
        LaunchError: If ``out`` cannot hold ``out_item``.
        CheckpointError: If the checkpoint does not fit the model.
    """
    if out is None and out_item is not None:
        raise LaunchError(f'--out-item {out_item} needs --out FILE')
    if out is not None:
        out_item = _check_out(out, out_item)
    runner = _build_runner(cfg)
    if out_item == 'pred':
        runner.test_evaluator.metrics.append(_prediction_writer(cfg, out))
    runner.logger.info(f'Testing {cfg.load_from}, {describe(cfg)}')
    metrics = runner.test()
    if out_item == 'metrics' and runner.rank == 0:
        mmengine.dump(metrics, out)
    return metrics


def describe(cfg: Config) -> str:
    """One line: config, device, processes, work folder."""
    return (
        f'{cfg.filename} on {get_device()}, {world_size()} process(es), '
        f'work folder {os.path.abspath(cfg.work_dir)}'
    )


def use_autocast(cfg: Config) -> None:
    """Switch to mixed precision, in bfloat16 unless a ``dtype`` is set.

    Args:
        cfg (Config): Its ``optim_wrapper`` keeps all other fields.
    """
    wrapper = cfg.optim_wrapper
    wrapper.type = 'ropim_mm.AutocastOptimWrapper'
    if wrapper.get('dtype') in (None, 'float32'):
        wrapper.dtype = 'bfloat16'


def global_batch_size(cfg: Config, processes: int) -> int:
    """Images behind one update of the parameters, over all processes."""
    loader = cfg.train_dataloader
    batch = loader.get('batch_size')
    if batch is None:
        batch = (loader.get('batch_sampler') or {}).get('batch_size')
    if not isinstance(batch, int):
        raise LaunchError(
            f'train_dataloader.batch_size is {batch!r}: expected a number'
        )
    return batch * processes * cfg.optim_wrapper.get('accumulative_counts', 1)


def scale_learning_rate(cfg: Config, processes: int) -> str:
    """Multiply all absolute rates by actual batch / base batch.

    MMEngine's own scaling leaves out accumulated gradients, the end value of
    the schedule and the rate that the log shows. Afterwards the base is the
    actual batch, so that the written config is not scaled again.

    Args:
        cfg (Config): Needs ``auto_scale_lr.base_batch_size``.
        processes (int): Number of processes that train.

    Returns:
        str: What was done, for the log.

    Raises:
        LaunchError: If there is no base batch size or no rate.
    """
    base = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    if not isinstance(base, int) or base < 1:
        raise LaunchError(
            f'auto_scale_lr.base_batch_size of {cfg.filename} is {base!r}: '
            '--auto-scale-lr needs the batch size that optimizer.lr is for'
        )
    optimizer = cfg.optim_wrapper.get('optimizer') or {}
    if 'lr' not in optimizer:
        raise LaunchError(
            f'optim_wrapper.optimizer.lr of {cfg.filename} is missing: '
            '--auto-scale-lr has nothing to scale'
        )
    batch = global_batch_size(cfg, processes)
    factor = batch / base
    before, optimizer.lr = optimizer.lr, optimizer.lr * factor
    schedulers = cfg.get('param_scheduler') or []
    if isinstance(schedulers, dict):
        schedulers = [schedulers]
    for scheduler in schedulers:
        for field in ('eta_min', 'eta_max'):
            if str(scheduler.type).endswith('LR') and scheduler.get(field):
                scheduler[field] *= factor
    cfg.auto_scale_lr = dict(base_batch_size=batch, enable=False)
    return (
        f'Learning rates multiplied by {factor:g} = {batch} images a step / '
        f'{base} (auto_scale_lr.base_batch_size): peak {before:g} -> '
        f'{optimizer.lr:g}'
    )


def set_resume(cfg: Config, resume: str | None) -> list[str]:
    """Point ``load_from`` and ``resume`` at the right file.

    Args:
        cfg (Config): With ``work_dir`` set. A config that says
            ``resume=True`` without ``load_from`` means ``'auto'``.
        resume (str, optional): ``'auto'``, a checkpoint file or the folder of
            a sharded one.

    Returns:
        list[str]: What was decided, for the log.

    Raises:
        LaunchError: If a file that is named does not exist.

    A run that is resumed has its weights: the files of ``Pretrained`` in the
    model's ``init_cfg`` are not read again, and need not exist any more.
    """
    if resume is None and cfg.get('resume') and not cfg.get('load_from'):
        resume = 'auto'
    if resume == 'auto':
        latest = latest_checkpoint(cfg.work_dir)
        cfg.resume = latest is not None
        if latest is None:
            return [
                f'--resume auto: no checkpoint in {cfg.work_dir}, starting '
                'from the beginning'
            ]
        cfg.load_from = latest
    elif resume is not None:
        cfg.resume, cfg.load_from = True, resume
    source = cfg.get('load_from')
    if source is None:
        return []
    if not _is_checkpoint(source):
        field = 'load_from' if resume is None else '--resume'
        raise LaunchError(
            f'{field}: checkpoint {source} not found (current folder '
            f'{os.getcwd()})'
        )
    if not cfg.get('resume'):
        return []
    notes = [f'Resuming from {source}']
    dropped = _drop_pretrained(cfg.model, 'model')
    if dropped:
        notes.append(
            f'The pretrained weights of {", ".join(dropped)} are not read '
            'again: the resumed checkpoint has them'
        )
    return notes


def latest_checkpoint(work_dir: str) -> str | None:
    """The checkpoint that a work folder says is its last.

    Args:
        work_dir (str): Where a run wrote ``last_checkpoint``. If the folder
            was moved since, the file of that name inside it is taken.

    Returns:
        str | None: Path of an existing file; None if none was ever written.

    Raises:
        LaunchError: If the file is gone.
    """
    if not os.path.isfile(os.path.join(work_dir, 'last_checkpoint')):
        return None
    named = find_latest_checkpoint(work_dir)
    moved = os.path.join(work_dir, os.path.basename(named))
    for path in (named, moved):
        if os.path.isfile(path) or is_sharded(path):
            return path
    raise LaunchError(
        f'{work_dir}/last_checkpoint names {named}, which does not exist: '
        'give the file to resume from, or delete last_checkpoint to start '
        'from the beginning'
    )


def check_data(cfg: Config, field: str) -> None:
    """Make sure that the local folders and files of a dataset are there.

    Args:
        cfg (Config): A config.
        field (str): Name of a data loader in it; may be missing or None.

    Raises:
        LaunchError: With the field, the path and how to set another.
    """
    if cfg.get(field) is None:
        return
    with DATASETS.switch_scope_and_registry(cfg.default_scope) as registry:
        _check_dataset(cfg[field].get('dataset'), f'{field}.dataset', registry)


def check_annotations(cfg: Config, field: str) -> None:
    """Make sure that the local files that metrics compare with are there.

    They have paths of their own, which do not follow that of the dataset.

    Args:
        cfg (Config): A config.
        field (str): Name of an evaluator in it; may be missing or None.

    Raises:
        LaunchError: With the field, the path and how to set another.
    """
    metrics = cfg.get(field) or []
    if isinstance(metrics, dict):
        metrics = [metrics]
        fields = [f'{field}.ann_file']
    else:
        fields = [f'{field}.{i}.ann_file' for i in range(len(metrics))]
    for name, metric in zip(fields, metrics, strict=True):
        path = metric.get('ann_file')
        if path and ':' not in path and not os.path.exists(path):
            raise _not_found(name, path)


def _check_dataset(dataset: object, field: str, registry: Registry) -> None:
    if isinstance(dataset, (list, tuple)):
        for i, part in enumerate(dataset):
            _check_dataset(part, f'{field}.{i}', registry)
    if not isinstance(dataset, dict):
        return
    for wrapped in ('dataset', 'datasets'):
        _check_dataset(dataset.get(wrapped), f'{field}.{wrapped}', registry)
    if _downloads(dataset, registry):
        return
    root = dataset.get('data_root') or ''
    paths = {'data_root': root, 'zip_file': dataset.get('zip_file')}
    if not os.path.isfile(root):  # an archive has its own folders
        prefix = dataset.get('data_prefix')
        if not isinstance(prefix, dict):
            prefix = {'': prefix}
        for key, path in prefix.items():
            paths[f'data_prefix.{key}'.rstrip('.')] = path
        paths['ann_file'] = dataset.get('ann_file')
    for name, path in paths.items():
        if not isinstance(path, str) or not path:
            continue
        in_root = name not in ('data_root', 'zip_file')
        full = os.path.join(root, path) if in_root else path
        if ':' in full or os.path.exists(full):  # `s3:`, `http:`, ...
            continue
        raise _not_found(f'{field}.{name}', full)


def _not_found(field: str, path: str) -> LaunchError:
    return LaunchError(
        f'{field}: {path} not found (current folder {os.getcwd()}); put the '
        f'data there, or point to it with --cfg-options {field}=PATH'
    )


def _downloads(dataset: dict, registry: Registry) -> bool:
    """Whether a dataset fetches what is missing (CIFAR, MNIST)."""
    cls = dataset.get('type')
    if isinstance(cls, str):
        cls = registry.get(cls)
    if cls is None:
        return False
    parameter = inspect.signature(cls).parameters.get('download')
    return parameter is not None and dataset.get('download', parameter.default)


def _is_checkpoint(path: str) -> bool:
    return '://' in path or os.path.isfile(path) or is_sharded(path)


def _check_strategy(cfg: Config) -> None:
    if 'runner_type' in cfg:  # MMEngine's FlexibleRunner reads it otherwise
        return
    if read_strategy(cfg).type == 'fsdp' and cfg.launcher == 'none':
        raise LaunchError(
            f"strategy of {cfg.filename} is 'fsdp', which splits the model "
            'over processes, but this is one process: start with '
            'tools/dist_train.sh or slurm_train.sh, or set strategy=ddp'
        )


def _set_work_dir(cfg: Config, work_dir: str | None) -> None:
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('work_dirs', Path(cfg.filename).stem)


def _set_collate(cfg: Config) -> None:
    # MMPretrain's models take stacked images, the others' lists of them.
    if cfg.default_scope in ('mmseg', 'mmdet'):
        return
    for field in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(field) is not None:
            cfg[field].setdefault(
                'collate_fn', ConfigDict(type='default_collate')
            )


def _build_runner(cfg: Config) -> Runner:
    if 'runner_type' in cfg:
        return RUNNERS.build(cfg)
    return PortableRunner.from_cfg(cfg)


def _named_checkpoints(cfg: Config) -> Iterator[str]:
    if cfg.get('load_from'):
        yield cfg.load_from
    for init_cfg in _pretrained(cfg.model):
        yield init_cfg['checkpoint']


def _pretrained(node: object) -> Iterator[dict]:
    """Every ``init_cfg`` of a model config that reads a file."""
    if isinstance(node, dict):
        if node.get('type') in _PRETRAINED and node.get('checkpoint'):
            yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from _pretrained(child)


def _drop_pretrained(node: object, field: str) -> list[str]:
    """Take ``Pretrained`` out of every ``init_cfg``; return their fields."""
    if isinstance(node, (list, tuple)):
        children = enumerate(node)
    elif isinstance(node, dict):
        children = node.items()
    else:
        return []
    dropped = []
    for key, child in list(children):
        name = f'{field}.{key}'
        if key != 'init_cfg':
            dropped += _drop_pretrained(child, name)
            continue
        entries = [child] if isinstance(child, dict) else list(child or [])
        kept = [e for e in entries if e.get('type') not in _PRETRAINED]
        if len(kept) < len(entries):
            node[key] = kept or None
            dropped.append(name)
    return dropped


def _is_ours(node: object) -> bool:
    """Whether a part of a model config is of this package."""
    if isinstance(node, dict):
        if str(node.get('type')).startswith('ropim_mm.'):
            return True
        node = list(node.values())
    return isinstance(node, (list, tuple)) and any(map(_is_ours, node))


def _refuse_unchecked(cfg: Config) -> None:
    fields = unchecked_pretrained(cfg)
    if fields:
        raise LaunchError(
            f'{", ".join(fields)} of {cfg.filename} would load a checkpoint '
            'without a check that it fits. For a pretrained encoder use '
            'model.backbone.init_cfg=dict(type="Pretrained", '
            'checkpoint=FILE, prefix="backbone."), for the weights of the '
            'whole model load_from=FILE'
        )


def _require_all_weights(cfg: Config) -> None:
    # MMEngine only warns about tensors that the checkpoint lacks.
    kind = 'ropim_mm.CheckpointCoverageHook'
    hooks = cfg.get('custom_hooks') or []
    if not any(hook.get('type') == kind for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type=kind)]


def _show_predictions(cfg: Config, folder: str) -> None:
    if cfg.default_scope not in _DRAWING:
        raise LaunchError(
            f'--show-dir: default_scope {cfg.default_scope!r} has no '
            f'pictures; expected one of {", ".join(_DRAWING)}'
        )
    hook_type, switch = _DRAWING[cfg.default_scope]
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    hook = hooks.setdefault('visualization', ConfigDict(type=hook_type))
    hook[switch] = True
    hook.interval = 1
    if cfg.get('visualizer') is None:
        cfg.visualizer = ConfigDict(type=_VISUALIZER[cfg.default_scope])
    if cfg.default_scope == 'mmpretrain':
        hook.out_dir = folder
    elif cfg.default_scope == 'mmdet':
        hook.test_out_dir = folder
    else:
        cfg.visualizer.vis_backends = [dict(type='LocalVisBackend')]
        cfg.visualizer.save_dir = folder


def _use_tta(cfg: Config) -> None:
    for field in ('tta_model', 'tta_pipeline'):
        if cfg.get(field) is None:
            raise LaunchError(f'--tta: {cfg.filename} has no {field}')
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def _check_out(out: str, item: str | None) -> str:
    is_pickle = out.endswith(('.pkl', '.pickle'))
    if item is None:
        item = 'pred' if is_pickle else 'metrics'
    if item == 'pred' and not is_pickle:
        raise LaunchError(f'--out {out}: predictions go to a .pkl file')
    if item == 'metrics' and not is_pickle:
        if not out.endswith(('.json', '.yaml', '.yml')):
            raise LaunchError(
                f'--out {out}: metrics go to a .json, .yaml or .pkl file'
            )
    return item


def _prediction_writer(cfg: Config, out: str) -> DumpResults:
    if cfg.default_scope == 'mmdet':
        # Masks are run-length encoded, which makes the file far smaller.
        from mmdet.evaluation import DumpDetResults

        return DumpDetResults(out_file_path=out)
    return DumpResults(out_file_path=out)
