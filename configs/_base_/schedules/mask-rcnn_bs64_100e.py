# ViTDet's schedule: 184,375 updates of 64 images, 100 epochs of COCO, with a
# tenth of the rate after 88 and again after 96 epochs.
_base_ = './dense_adamw.py'

optim_wrapper = dict(
    optimizer=dict(lr=1e-4 * 64 / 64, weight_decay=0.1),
    paramwise_cfg=dict(layer_decay_rate=0.7),
)

param_scheduler = [
    dict(
        type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250
    ),
    dict(
        type='MultiStepLR',
        milestones=[163889, 177546],
        gamma=0.1,
        by_epoch=False,
        begin=0,
        end=184375,
    ),
]

train_cfg = dict(max_iters=184375, val_interval=5000)
auto_scale_lr = dict(base_batch_size=64)
