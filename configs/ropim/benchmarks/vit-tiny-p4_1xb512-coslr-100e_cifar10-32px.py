_base_ = [
    '../../_base_/models/ropim_classifier.py',
    '../../_base_/datasets/cifar10_bs512_finetune_32px.py',
    '../../_base_/schedules/finetune_adamw.py',
    '../../_base_/finetune_runtime.py',
]

model = dict(
    backbone=dict(arch='tiny', img_size=32, patch_size=4),
    head=dict(in_channels=192, num_classes=10),
)

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
default_hooks = dict(logger=dict(interval=50))
