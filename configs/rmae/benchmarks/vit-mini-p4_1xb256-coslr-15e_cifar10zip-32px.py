# A small encoder (4 blocks, 96 wide) that two CPU cores train in minutes:
# shifted crops and flips alone, since it sees each image only 15 times.
# The archive: --cfg-options {train,val,test}_dataloader.dataset.zip_file=FILE
# From scratch: model.backbone.init_cfg=None
_base_ = [
    '../../_base_/models/rmae_classifier.py',
    '../../_base_/datasets/cifar10zip_bs512_finetune_32px.py',
    '../../_base_/schedules/finetune_adamw.py',
    '../../_base_/finetune_runtime.py',
]

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=96,
            num_layers=4,
            num_heads=3,
            feedforward_channels=384,
        ),
        img_size=32,
        patch_size=4,
        drop_path_rate=0.0,
    ),
    head=dict(in_channels=96, num_classes=10),
    train_cfg=dict(_delete_=True),
)

train_pipeline = [
    dict(type='ropim_mm.LoadImage', on_error='raise'),
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=256, num_workers=1, dataset=dict(pipeline=train_pipeline)
)
val_dataloader = dict(batch_size=256, num_workers=1)
test_dataloader = val_dataloader

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
default_hooks = dict(logger=dict(interval=20))
