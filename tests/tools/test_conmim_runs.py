"""Whole runs of ConMIM: interrupted, and on two processes."""

import pytest
import torch

pytestmark = pytest.mark.slow

CONFIG = """
custom_imports = dict(
    imports=['ropim_mm', 'watching'], allow_failed_imports=False)
default_scope = 'mmpretrain'
model = dict(
    type='ropim_mm.ConMIM',
    backbone=dict(
        type='ropim_mm.ConMIMViT',
        arch=dict(embed_dims=32, num_layers=2, num_heads=2,
                  feedforward_channels=64),
        img_size=32, patch_size=8, out_type='raw', final_norm=True,
        use_rel_pos_bias=False, use_shared_rel_pos_bias=True,
        with_mask_token=True),
    neck=dict(type='ropim_mm.ConMIMNeck', in_channels=32, hid_channels=16,
              out_channels=8),
    head=dict(type='ropim_mm.ConMIMHead'))
data_preprocessor = dict(
    type='SelfSupDataPreprocessor', mean=[128] * 3, std=[64] * 3)
train_dataloader = dict(
    batch_size=4, num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset', data_root={images!r}, with_label=False,
        pipeline=[
            dict(type='ropim_mm.LoadImage'),
            dict(type='RandomFlip', prob=0.5),
            dict(type='ropim_mm.TwoViews',
                 strong=[dict(type='Solarize', thr=128, prob=0.5)]),
            dict(type='PackInputs')]))
optim_wrapper = dict(
    type='ropim_mm.AutocastOptimWrapper', dtype='float32',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    constructor='ropim_mm.LayerDecayOptimWrapperConstructor')
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=8)]
train_cfg = dict(by_epoch=True, max_epochs=2)
custom_hooks = [
    dict(type='ropim_mm.MomentumCopyHook', start=0.9), dict(type='Watching')]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='CheckpointHook', interval=1))
log_processor = dict(window_size=1)
visualizer = dict(type='Visualizer', vis_backends=[
    dict(type='LocalVisBackend')])
randomness = dict(seed=3, diff_rank_seed=True)
"""

# All processes must have the same parameters and the same copy.
WATCHING = """
import torch
from mmengine.dist import all_gather
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Watching(Hook):
    priority = 'LOW'
    def after_train_iter(self, runner, batch_idx, **kwargs):
        model = getattr(runner.model, 'module', runner.model)
        sums = torch.stack([
            sum(p.detach().double().abs().sum() for n, p in
                model.named_parameters() if n.startswith('momentum.') is copy)
            for copy in (False, True)])
        found = all_gather(sums)
        assert all(torch.equal(other, sums) for other in found), found
        runner.logger.info(f'{len(found)} processes agree: {sums.tolist()}')
"""


@pytest.fixture(scope='module')
def config(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp('conmim')
    (folder / 'watching.py').write_text(WATCHING)
    path = folder / 'conmim.py'
    path.write_text(CONFIG.replace('{images!r}', repr(str(images))))
    return path


@pytest.fixture(scope='module')
def whole(call, config, tmp_path_factory):
    """Work folder of an uninterrupted run."""
    work_dir = tmp_path_factory.mktemp('whole')
    call(
        'train.py', config, '--work-dir', work_dir,
        PYTHONPATH=f'{config.parent}',
    )  # fmt: skip
    return work_dir


def weights(path):
    return torch.load(path, weights_only=False)['state_dict']


def test_the_copy_follows_and_is_saved(whole, history):
    first, second = (weights(whole / f'epoch_{i}.pth') for i in (1, 2))
    for prefix in ('backbone.', 'neck.'):
        keys = [k for k in second if k.startswith(prefix)]
        moved = [
            k
            for k in keys
            if not torch.equal(second[k], second[f'momentum.{k}'])
        ]
        assert len(moved) > len(keys) / 2
        assert any(
            not torch.equal(first[f'momentum.{k}'], second[f'momentum.{k}'])
            for k in keys
        )
    momentum = history(whole, 'copy_momentum')
    assert momentum[1] == pytest.approx(0.9)
    assert 0.99 < momentum[8] < 1.0


def test_an_interrupted_run_ends_with_the_same_numbers(
    call, config, whole, tmp_path
):
    start = whole / 'epoch_1.pth'
    call(
        'train.py', config, '--work-dir', tmp_path, '--resume', start,
        PYTHONPATH=f'{config.parent}',
    )  # fmt: skip
    ours, theirs = (weights(p / 'epoch_2.pth') for p in (tmp_path, whole))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key


@pytest.mark.skipif(
    torch.cuda.device_count() == 1, reason='2 processes need 0 or 2 GPUs'
)
def test_two_processes_have_equal_students_and_copies(
    call, config, tmp_path, history
):
    output = call(
        'dist_train.sh', config, 2, '--work-dir', tmp_path,
        '--cfg-options', 'train_dataloader.batch_size=2',
        PYTHONPATH=f'{config.parent}',
    )  # fmt: skip
    assert output.count('2 processes agree') == 8
    assert len(history(tmp_path, 'copy_momentum')) == 8
