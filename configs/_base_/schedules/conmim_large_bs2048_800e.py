# The rates of ViT-L: peak 7.5e-4 and end 1e-5, for 2048 images an update.
_base_ = './conmim_bs2048_300e.py'

optim_wrapper = dict(optimizer=dict(lr=9.375e-5 * 2048 / 256))

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-6,
        by_epoch=True,
        begin=0,
        end=10,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1.25e-6 * 2048 / 256,
        by_epoch=True,
        begin=10,
        end=800,
        convert_to_iter_based=True,
    ),
]

train_cfg = dict(by_epoch=True, max_epochs=800)
