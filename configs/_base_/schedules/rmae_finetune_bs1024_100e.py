# MAE's fine-tuning of ViT-B, as in MMPretrain: 100 epochs, peak 2e-3 and end
# 1e-6 for 1024 images.
_base_ = './finetune_adamw.py'

optim_wrapper = dict(
    optimizer=dict(lr=5e-4 * 1024 / 256),
    paramwise_cfg=dict(layer_decay_rate=0.65),
)

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-4,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=2.5e-7 * 1024 / 256,
        by_epoch=True,
        begin=5,
        end=100,
        convert_to_iter_based=True,
    ),
]

train_cfg = dict(max_epochs=100)
