_base_ = [
    '../../_base_/models/ropim_classifier.py',
    '../../_base_/datasets/imagenet100_bs128_finetune.py',
    '../../_base_/schedules/finetune_adamw.py',
    '../../_base_/finetune_runtime.py',
]

model = dict(
    backbone=dict(arch='tiny'), head=dict(in_channels=192, num_classes=100)
)

optim_wrapper = dict(
    optimizer=dict(lr=1e-2 * 1024 / 512),
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
        eta_min=2.5e-7 * 1024 / 512,
        by_epoch=True,
        begin=5,
        end=100,
        convert_to_iter_based=True,
    ),
]

train_cfg = dict(max_epochs=100)
