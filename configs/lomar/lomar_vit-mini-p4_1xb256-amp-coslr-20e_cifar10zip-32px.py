# A small encoder (4 blocks, 96 wide) that two CPU cores train in minutes.
# The archive: --cfg-options train_dataloader.dataset.zip_file=FILE
_base_ = [
    '../_base_/models/lomar.py',
    '../_base_/datasets/cifar10zip_bs256_lomar_32px.py',
    '../_base_/schedules/lomar_bs4096_400e.py',
    '../_base_/default_runtime.py',
]

# The 8 x 8 patches leave 4 rows and columns for windows of 5 x 5 to begin at.
model = dict(
    window_size=5,
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
    ),
    neck=dict(embed_dims=96, patch_size=4),
)

train_dataloader = dict(num_workers=1)
optim_wrapper = dict(optimizer=dict(lr=1e-3 * 256 / 256))

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-6,
        by_epoch=True,
        begin=0,
        end=2,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=0.0,
        by_epoch=True,
        begin=2,
        end=20,
        convert_to_iter_based=True,
    ),
]

train_cfg = dict(max_epochs=20)
auto_scale_lr = dict(base_batch_size=256)
default_hooks = dict(logger=dict(interval=20))
