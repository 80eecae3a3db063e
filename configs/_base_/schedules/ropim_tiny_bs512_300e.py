# The rates of ViT-T, on one device.
_base_ = './ropim_bs1024_300e.py'

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
