_base_ = [
    '../_base_/models/ropim.py',
    '../_base_/datasets/imagenet100_bs128_ropim.py',
    '../_base_/schedules/ropim_bs1024_800e.py',
    '../_base_/default_runtime.py',
]

model = dict(backbone=dict(arch='tiny'), neck=dict(embed_dims=192))

optim_wrapper = dict(optimizer=dict(lr=1e-3 * 1024 / 512))

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
        eta_min=5e-6 * 1024 / 512,
        by_epoch=True,
        begin=5,
        end=800,
        convert_to_iter_based=True,
    ),
]
