_base_ = [
    '../../_base_/models/ropim_classifier.py',
    '../../_base_/datasets/cifar100_bs128_finetune.py',
    '../../_base_/schedules/finetune_adamw.py',
    '../../_base_/finetune_runtime.py',
]

model = dict(head=dict(num_classes=100))

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
