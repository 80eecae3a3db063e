_base_ = './ropim_bs1024_300e.py'

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=5e-7 / 1.5e-4,
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

train_cfg = dict(by_epoch=True, max_epochs=800)
