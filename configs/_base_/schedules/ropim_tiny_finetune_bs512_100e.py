# Fine-tuning of ROPIM's ViT-T, on one device.
_base_ = './finetune_adamw.py'

optim_wrapper = dict(
    optimizer=dict(lr=1e-2 * 512 / 512),
    paramwise_cfg=dict(layer_decay_rate=0.7),
    clip_grad=dict(max_norm=5.0),
)

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=2.5e-7 / 1e-2,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=2.5e-7 * 512 / 512,
        by_epoch=True,
        begin=5,
        end=100,
        convert_to_iter_based=True,
    ),
]

train_cfg = dict(max_epochs=100)
auto_scale_lr = dict(base_batch_size=512)
