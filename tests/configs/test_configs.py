"""What all configs have in common, whatever their method."""

import ast
import re
from pathlib import Path

import pytest

from config_checks import CONFIGS, configs_of, load, methods
from ropim_mm.evaluation.benchmark_loader import training_pipeline

ALL = [name for method in methods() for name in configs_of(method)]
PRETRAIN = [name for name in ALL if '/benchmarks/' not in name]


def test_every_method_has_a_test_of_its_configs():
    """Each of these files checks that its tables list every config."""
    tests = Path(__file__).parent.glob('test_*_configs.py')
    dense = {'segmentation', 'detection'}
    assert {path.stem.split('_')[1] for path in tests} == dense | set(
        methods()
    )


@pytest.mark.parametrize(
    'path', sorted(CONFIGS.rglob('*.py')), ids=lambda p: p.stem
)
def test_text_without_logic(path):
    """Assignments of data and arithmetic; bases of this repository only.

    A list may take over what follows an index in a list of its base.
    """
    text = path.read_text()
    allowed = (
        ast.Module, ast.Assign, ast.Name, ast.Load, ast.Store, ast.Constant,
        ast.List, ast.Tuple, ast.Dict, ast.keyword, ast.BinOp, ast.Mult,
        ast.Div, ast.Call, ast.Attribute, ast.UnaryOp, ast.USub,
        ast.Starred, ast.Subscript, ast.Slice,
    )  # fmt: skip
    tree = ast.parse(text)
    for node in ast.walk(tree):
        assert isinstance(node, allowed), ast.unparse(node)
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) == 'dict'
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node.value) == '_base_'
        if isinstance(node, (ast.Starred, ast.Subscript)):
            assert re.fullmatch(r'\*?_base_\.\w+(\[\d:\])?', ast.unparse(node))
    assert len(text.splitlines()) <= 90
    for node in tree.body:
        if ast.unparse(node.targets[0]) != '_base_':
            continue
        bases = ast.literal_eval(node.value)
        for base in [bases] if isinstance(bases, str) else bases:
            target = (path.parent / base).resolve()
            assert target.is_file(), base
            assert target.is_relative_to(CONFIGS)


@pytest.mark.parametrize('name', ALL)
def test_what_all_share(name):
    cfg = load(name)
    assert cfg.default_scope == 'mmpretrain'
    assert cfg.custom_imports == dict(
        imports=['ropim_mm'], allow_failed_imports=False
    )
    assert cfg.resume is False
    assert cfg.randomness == dict(seed=0, diff_rank_seed=True)
    assert cfg.optim_wrapper.type == 'ropim_mm.AutocastOptimWrapper'
    assert cfg.optim_wrapper.dtype == 'bfloat16'
    hooks = [hook.type for hook in cfg.custom_hooks]
    assert hooks[0] == 'ropim_mm.CheckpointCoverageHook'
    skips = training_pipeline(cfg)[0].get('on_error') == 'skip'
    assert ('ropim_mm.SkippedImagesHook' in hooks) is skips
    assert ('custom' in name) is skips
    assert cfg.default_hooks.data_wait.type == 'ropim_mm.DataWaitHook'
    by_epoch = cfg.train_cfg.get('by_epoch', True)
    checkpoint = cfg.default_hooks.checkpoint
    assert checkpoint.get('by_epoch', True) is by_epoch
    assert checkpoint.max_keep_ckpts == 3
    assert checkpoint.save_last is True
    assert cfg.train_dataloader.drop_last is True
    assert cfg.train_dataloader.sampler == dict(
        type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True
    )
    devices, batch = map(int, re.search(r'_(\d+)xb(\d+)-', name).groups())
    assert cfg.train_dataloader.batch_size == batch
    assert cfg.auto_scale_lr == dict(base_batch_size=devices * batch)
    epochs = int(re.search(r'-(\d+)e_', name)[1])
    if by_epoch:
        assert cfg.train_cfg.max_epochs == epochs
    for loader in ('val_dataloader', 'test_dataloader'):
        if loader in cfg:
            assert cfg[loader].dataset.test_mode is True
            assert cfg[loader].drop_last is False
            assert cfg[loader].sampler.shuffle is False
    assert cfg.get('test_dataloader') == cfg.get('val_dataloader')


@pytest.mark.parametrize('name', PRETRAIN)
def test_what_pretraining_shares(name):
    cfg = load(name)
    method = name.split('/')[0]
    assert name.startswith(f'{method}/{method}_vit-')
    assert cfg.model.type.startswith('ropim_mm.')
    assert cfg.optim_wrapper.clip_grad.max_norm > 0
    constructor = 'ropim_mm.LayerDecayOptimWrapperConstructor'
    assert cfg.optim_wrapper.constructor == constructor
    assert 'val_dataloader' not in cfg


def test_rates_are_written_as_base_times_batch():
    seen = 0
    for path in CONFIGS.rglob('*.py'):
        # ROPIM states its rates for 512 images, everybody else for 256;
        # segmentation and detection for the batch of their recipes.
        relative = path.relative_to(CONFIGS).as_posix()
        base = '256'
        if 'ropim' in relative and 'linear' not in path.stem:
            base = '512'
        if 'upernet' in path.stem:
            base = '16'
        if 'mask-rcnn' in path.stem:
            base = '64'
        for field, rate in re.findall(
            r'\b(lr|eta_min)=([^,)\n]+)', path.read_text()
        ):
            if rate == '0.0':
                continue
            seen += 1
            assert re.fullmatch(rf'[\d.e-]+ \* \d+ / {base}', rate), (
                f'{path.name}: {field}={rate}'
            )
    assert seen >= 20
