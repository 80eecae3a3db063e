# MIMDet's schedule: 36 epochs of 1875 updates of 64 images, with a tenth of
# the rate after 27 and again after 33 epochs, and a quarter of an epoch of
# warm-up from 0 (a factor of 0 itself cannot grow). What does not come from
# pretraining learns twice as fast. No layer decay.
_base_ = './mask-rcnn_bs64_100e.py'

optim_wrapper = dict(
    optimizer=dict(lr=8e-5 * 64 / 64),
    paramwise_cfg=dict(
        layer_decay_rate=1.0,
        lr_mult={
            'backbone.stem': 2.0,
            'backbone.decoder': 2.0,
            'neck': 2.0,
            'rpn_head': 2.0,
            'roi_head': 2.0,
        },
    ),
)

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=469),
    dict(
        type='MultiStepLR',
        milestones=[27 * 1875, 33 * 1875],
        gamma=0.1,
        by_epoch=False,
        begin=0,
        end=36 * 1875,
    ),
]

train_cfg = dict(max_iters=36 * 1875)
