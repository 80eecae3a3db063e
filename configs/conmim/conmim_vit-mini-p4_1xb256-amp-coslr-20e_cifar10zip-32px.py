# A small encoder (4 blocks, 96 wide) that two CPU cores train in minutes.
# The archive: --cfg-options train_dataloader.dataset.zip_file=FILE
_base_ = [
    '../_base_/models/conmim.py',
    '../_base_/datasets/cifar10zip_bs256_conmim_32px.py',
    '../_base_/schedules/conmim_bs2048_300e.py',
    '../_base_/conmim_runtime.py',
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
    ),
    neck=dict(in_channels=96, hid_channels=256, out_channels=64),
)

train_dataloader = dict(batch_size=256, num_workers=1)
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
        eta_min=1.25e-6 * 256 / 256,
        by_epoch=True,
        begin=2,
        end=20,
        convert_to_iter_based=True,
    ),
]

train_cfg = dict(max_epochs=20)
auto_scale_lr = dict(base_batch_size=256)
default_hooks = dict(logger=dict(interval=20))
