# A small encoder (4 blocks, 96 wide) that two CPU cores train in minutes, with
# decoders in proportion.
# The archive: --cfg-options train_dataloader.dataset.zip_file=FILE
# Its label maps: train_dataloader.dataset.data_prefix.region_path=FOLDER
_base_ = [
    '../_base_/models/rmae.py',
    '../_base_/datasets/cifar10zip_bs256_rmae_32px.py',
    '../_base_/schedules/rmae_bs4096_800e.py',
    '../_base_/default_runtime.py',
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
    neck=dict(
        embed_dims=96,
        img_size=32,
        patch_size=4,
        decoder_dims=64,
        decoder_depth=2,
        decoder_heads=4,
    ),
    head=dict(patch_size=4),
    region_branch=dict(
        embed_dims=96,
        img_size=32,
        patch_size=4,
        enc_dims=32,
        enc_heads=4,
        dec_dims=32,
        dec_heads=4,
        cross_layers=2,
    ),
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
