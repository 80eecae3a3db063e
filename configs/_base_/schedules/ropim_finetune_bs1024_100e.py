# Fine-tuning of ROPIM's ViT-B: 100 epochs, rates for a batch of 512.
_base_ = './finetune_adamw.py'

optim_wrapper = dict(
    optimizer=dict(lr=5e-3 * 1024 / 512),
    paramwise_cfg=dict(layer_decay_rate=0.75),
    clip_grad=dict(max_norm=5.0),
)

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=2.5e-7 / 5e-3,
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
        end=100,
        convert_to_iter_based=True,
    ),
]

train_cfg = dict(max_epochs=100)
