# Fine-tuning on few labels, from a checkpoint
#   --cfg-options model.backbone.init_cfg.checkpoint=FILE
# or from random weights
#   --cfg-options model.backbone.init_cfg=None
_base_ = [
    '../../configs/_base_/models/ropim_classifier.py',
    '../../configs/_base_/schedules/finetune_adamw.py',
    '../../configs/_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=96,
            num_layers=4,
            num_heads=4,
            feedforward_channels=192,
        ),
        img_size=32,
        patch_size=8,
        in_channels=1,
    ),
    head=dict(num_classes=10, in_channels=96),
    train_cfg=None,
)
data_preprocessor = dict(num_classes=10, mean=[77.0], std=[90.0])

load = dict(type='LoadImageFromFile', color_type='grayscale')
train_dataloader = dict(
    batch_size=20,
    num_workers=0,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root='digits',
        data_prefix='few-seed0',
        pipeline=[
            load,
            dict(
                type='RandomResizedCrop',
                scale=32,
                crop_ratio_range=(0.67, 1.0),
            ),
            dict(type='PackInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root='digits',
        data_prefix='val',
        test_mode=True,
        pipeline=[load, dict(type='PackInputs')],
    ),
)
test_dataloader = dict(
    batch_size=100,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root='digits',
        data_prefix='test',
        test_mode=True,
        pipeline=[load, dict(type='PackInputs')],
    ),
)
val_evaluator = dict(type='Accuracy', topk=1)
test_evaluator = val_evaluator

# The rate (of 1.5e-3, 3e-3, 6e-3) and the layer decay (of 0.75, 1) that were
# best on the `val` images for training from scratch; both starts use them.
optim_wrapper = dict(
    dtype='float32',
    optimizer=dict(lr=3e-3),
    paramwise_cfg=dict(layer_decay_rate=0.75),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        begin=0,
        end=10,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=10,
        end=100,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=5)
auto_scale_lr = dict(base_batch_size=20)

# The last weights are the result: none are picked by their accuracy.
default_hooks = dict(
    logger=dict(interval=5),
    checkpoint=dict(interval=-1, save_last=True),
)
