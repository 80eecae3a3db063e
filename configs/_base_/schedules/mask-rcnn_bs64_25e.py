# A quarter of the updates: drops after 22 and 24 of 25 epochs.
_base_ = './mask-rcnn_bs64_100e.py'

param_scheduler = [
    dict(
        type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250
    ),
    dict(
        type='MultiStepLR',
        milestones=[40972, 44387],
        gamma=0.1,
        by_epoch=False,
        begin=0,
        end=46094,
    ),
]

train_cfg = dict(max_iters=46094)
