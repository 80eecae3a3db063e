# Fine-tuning of encoders of 0.5 M parameters on small images, on one device.
_base_ = './finetune_adamw.py'

optim_wrapper = dict(
    optimizer=dict(lr=1e-3 * 256 / 256),
    paramwise_cfg=dict(layer_decay_rate=0.8),
    clip_grad=dict(max_norm=5.0),
)

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        begin=0,
        end=1,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1.25e-7 * 256 / 256,
        by_epoch=True,
        begin=1,
        end=15,
        convert_to_iter_based=True,
    ),
]

train_cfg = dict(max_epochs=15, val_interval=5)
auto_scale_lr = dict(base_batch_size=256)
