# 144,000 updates on COCO, 12,000 of them warm-up. With a batch of 4096 these
# are about 4990 passes over train2017 (118,287 images), and about 2440 over
# train2017 and unlabeled2017. The released files call both 4000 epochs.
_base_ = './rmae_bs4096_800e.py'

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-6,
        by_epoch=False,
        begin=0,
        end=12000,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=0.0,
        by_epoch=False,
        begin=12000,
        end=144000,
    ),
]

train_cfg = dict(_delete_=True, by_epoch=False, max_iters=144000)
