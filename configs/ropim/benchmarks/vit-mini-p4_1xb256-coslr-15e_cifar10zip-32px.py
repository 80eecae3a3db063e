# A small encoder (4 blocks, 96 wide) that two CPU cores train in minutes:
# shifted crops and flips alone, since it sees each image only 15 times.
# The archive: --cfg-options {train,val,test}_dataloader.dataset.zip_file=FILE
# From scratch: model.backbone.init_cfg=None
_base_ = [
    '../../_base_/models/ropim_classifier.py',
    '../../_base_/datasets/cifar10zip_bs256_finetune_mini_32px.py',
    '../../_base_/schedules/mini_finetune_bs256_15e.py',
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

default_hooks = dict(logger=dict(interval=20))
