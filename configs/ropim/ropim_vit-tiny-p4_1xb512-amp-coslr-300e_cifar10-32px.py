# 8 x 8 patches of 4 x 4 pixels; the rates of ViT-T.
_base_ = [
    '../_base_/models/ropim.py',
    '../_base_/datasets/cifar10_bs512_ropim_32px.py',
    '../_base_/schedules/ropim_bs1024_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(arch='tiny', img_size=32, patch_size=4),
    neck=dict(embed_dims=192, patch_size=4),
    head=dict(patch_size=4),
)

optim_wrapper = dict(optimizer=dict(lr=1e-3 * 512 / 512))

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=5e-7 / 1e-3,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=5e-6 * 512 / 512,
        by_epoch=True,
        begin=5,
        end=300,
        convert_to_iter_based=True,
    ),
]

auto_scale_lr = dict(base_batch_size=512)
default_hooks = dict(logger=dict(interval=50))
