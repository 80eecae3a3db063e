"""Training in one process and in several, on the same images.

    python two_processes.py FOLDER one
    torchrun --nproc_per_node=2 two_processes.py FOLDER two
    torchrun --nproc_per_node=4 two_processes.py FOLDER four

Each run of each method leaves FOLDER/RUN/METHOD with its checkpoints, and
``norms.json``: the norms of the gradients of its updates. Every random
decision of the methods lies on the samples.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from mmengine.config import ConfigDict  # noqa: E402
from mmengine.dataset import default_collate  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402
from mmpretrain.structures import DataSample  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402

from ropim_mm.engine import PortableRunner  # noqa: E402
from ropim_mm.engine.distributed import init_process_group  # noqa: E402
from ropim_mm.engine.sharding import shard_model  # noqa: E402
from tiny_models import METHODS, REGIONS, encoder, model_config  # noqa: E402

IMAGES, BATCH, EPOCHS, TOKENS, SIDE = 12, 4, 2, 16, 32
# What a process of two gets of a batch, as one process would take it in turn.
IN_TURN = [4 * i + j for i in range(IMAGES // 4) for j in (0, 2, 1, 3)]


def dataset(method: str) -> list[dict]:
    """Samples with all that the method would draw."""
    draw = torch.Generator().manual_seed(1)

    def bits(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=draw) > 0.5

    samples = []
    for _ in range(IMAGES):
        views = torch.randn(2, 3, SIDE, SIDE, generator=draw)
        order = torch.randperm(TOKENS, generator=draw)
        fields = dict(
            ropim=dict(
                sketch_hash=order // 4, sketch_sign=bits(TOKENS) * 2.0 - 1
            ),
            lomar=dict(
                window_tops=order[:2] % 3,
                window_lefts=order[2:4] % 3,
                window_mask=torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1]]).bool(),
            ),
            rmae=dict(regions=bits(REGIONS, SIDE, SIDE), shuffle_ids=order),
            conmim=dict(mask=(order < 12).view(4, 4)),
        )[method]
        sample = DataSample()
        for name, value in fields.items():
            sample.set_field(value, name)
        inputs = list(views) if method == 'conmim' else views[0]
        samples.append(dict(inputs=inputs, data_samples=sample))
    return samples


class Record(Hook):
    """Keeps the norms; a projector's statistics can be held still."""

    def __init__(self, still: bool) -> None:
        self.still = still
        self.norms: list[float] = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        model = getattr(runner.model, 'module', runner.model)
        for module in model.modules():
            if self.still and isinstance(module, torch.nn.BatchNorm1d):
                module.eval()

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        if runner.optim_wrapper.should_update():
            history = runner.message_hub.get_scalar('train/grad_norm')
            self.norms.append(history.current())


def train(
    method: str,
    folder: Path,
    *,
    batch: int = BATCH,
    order: list[int] | None = None,
    strategy: dict | str = 'ddp',
    accumulate: int = 1,
    epochs: int = EPOCHS,
    still: bool = False,
    launcher: str = 'none',
    resume: Path | None = None,
    compiled: bool = False,
    with_cp: bool = False,
) -> PortableRunner:
    """Train a tiny model and leave its checkpoints and norms in ``folder``."""
    DefaultScope._instance_dict.clear()
    model = model_config(method)
    model['backbone'].update(drop_path_rate=0.0, with_cp=with_cp)
    samples = dataset(method)
    schedule = dict(type='CosineAnnealingLR', by_epoch=True, end=EPOCHS)
    record = Record(still)
    hooks = [dict(type='ropim_mm.CheckpointCoverageHook'), record]
    if method == 'conmim':
        hooks.append(dict(type='ropim_mm.MomentumCopyHook', start=0.5))
    runner = PortableRunner(
        model=model,
        work_dir=str(folder),
        experiment_name=str(folder).replace('/', '_'),
        train_dataloader=dict(
            dataset=[samples[i] for i in order or range(IMAGES)],
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=batch,
            num_workers=0,
            collate_fn=default_collate,
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(
            type='ropim_mm.AutocastOptimWrapper',
            dtype='float32',
            optimizer=dict(
                type='AdamW', lr=1e-3, weight_decay=0.05, fused=True
            ),
            constructor='ropim_mm.LayerDecayOptimWrapperConstructor',
            # Below the norms that there are: clipping takes part.
            clip_grad=dict(max_norm=0.01),
            accumulative_counts=accumulate,
        ),
        param_scheduler=dict(schedule, convert_to_iter_based=True),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(type='CheckpointHook', interval=1),
        ),
        custom_hooks=hooks,
        load_from=resume and str(resume),
        resume=resume is not None,
        launcher=launcher,
        randomness=dict(seed=0, diff_rank_seed=True),
        default_scope='mmpretrain',
        log_level='ERROR',
        cfg=ConfigDict(
            strategy=strategy, compile=compiled and dict(backend='eager')
        ),
    )
    runner.train()
    if runner.rank == 0:
        (folder / 'norms.json').write_text(json.dumps(record.norms))
    return runner


def one(folder: Path) -> None:
    """The whole batch at once, and in turns of a half."""
    for method in METHODS:
        still = method == 'conmim'
        train(method, folder / 'whole' / method, still=still)
        train(
            method,
            folder / 'turns' / method,
            batch=BATCH // 2,
            order=IN_TURN,
            accumulate=2,
        )


def two(folder: Path) -> None:
    """Data-parallel, split, and resumed from one another."""
    init_process_group('pytorch')
    sharded = dict(type='fsdp', checkpoints='sharded')
    share = dict(batch=BATCH // 2, launcher='pytorch')
    for method in METHODS:
        train(method, folder / 'ddp' / method, **share)
        train(method, folder / 'fsdp' / method, strategy='fsdp', **share)
        train(method, folder / 'parts' / method, strategy=sharded, **share)
        # A batch in two turns of one image a process.
        train(
            method,
            folder / 'fsdp turns' / method,
            batch=1,
            accumulate=2,
            strategy='fsdp',
            launcher='pytorch',
            still=method == 'conmim',
        )
        train(
            method,
            folder / 'fsdp variants' / method,
            strategy='fsdp',
            compiled=True,
            with_cp=True,
            **share,
        )
        for name, source, strategy in (
            ('fsdp resumed', 'ddp', 'fsdp'),
            ('parts resumed', 'parts', sharded),
            ('ddp resumed', 'fsdp', 'ddp'),
        ):
            train(
                method,
                folder / name / method,
                strategy=strategy,
                resume=folder / source / method / 'epoch_1.pth',
                **share,
            )
    (folder / f'windows{dist.get_rank()}.json').write_text(
        json.dumps(windows())
    )
    dist.barrier()
    dist.destroy_process_group()


def four(folder: Path) -> None:
    """Two copies of the model, each split over two processes."""
    init_process_group('pytorch')
    strategy = dict(type='fsdp', checkpoints='sharded', shard_over=2)
    share = dict(batch=1, launcher='pytorch', strategy=strategy, still=True)
    for method in ('ropim', 'conmim'):
        train(method, folder / 'copies' / method, **share)
        train(
            method,
            folder / 'copies resumed' / method,
            resume=folder / 'copies' / method / 'epoch_1.pth',
            **share,
        )
    dist.barrier()
    dist.destroy_process_group()


def windows() -> dict:
    """An encoder as detection uses it, split, against itself.

    Returns:
        dict: ``difference`` of features and ``gradients`` (the largest), and
        how many blocks were ``open`` after each of forward and backward.
    """
    options = dict(
        img_size=64, window_size=2, global_blocks=(1,), out_type='featmap'
    )
    torch.manual_seed(0)
    whole = encoder('rmae', **options)
    torch.manual_seed(0)
    split = encoder('rmae', **options)
    shard_model(split)
    images = torch.randn(1, 3, 64, 64)
    opened = []
    features = []
    for model in (whole, split):
        features.append(model(images)[-1])
        if model is split:
            opened.append(count_open(model))
        features[-1].pow(3).mean().backward()
    opened.append(count_open(split))
    gradients = [
        (a.grad - b.grad.full_tensor()).abs().max().item()
        for a, b in zip(whole.parameters(), split.parameters(), strict=True)
        if a.grad is not None
    ]
    first = whole.layers[0]
    return dict(
        difference=(features[0] - features[1]).abs().max().item(),
        gradients=max(gradients),
        scale=max(p.grad.abs().max().item() for p in first.parameters()),
        open=opened,
    )


def count_open(model: torch.nn.Module) -> int:
    """Blocks whose parameters are together."""
    return sum(
        not isinstance(next(block.parameters()), DTensor)
        for block in model.layers
    )


if __name__ == '__main__':
    torch.set_num_threads(1)
    dict(one=one, two=two, four=four)[sys.argv[2]](Path(sys.argv[1]))
