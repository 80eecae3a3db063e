# Pretraining on the digits that demo/run.py writes: grey, 4 x 4 patches.
# Paths are relative to the demo's work folder.
_base_ = [
    '../../configs/_base_/models/ropim.py',
    '../../configs/_base_/schedules/ropim_bs1024_300e.py',
    '../../configs/_base_/default_runtime.py',
]

# The projection keeps 4 of 16 dimensions.
model = dict(
    sketch_ratio=0.25,
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
        drop_path_rate=0.0,
    ),
    neck=dict(embed_dims=96, patch_size=8, out_channels=1),
    head=dict(patch_size=8),
)
data_preprocessor = dict(
    type='SelfSupDataPreprocessor', mean=[77.0], std=[90.0]
)

# No flips: a mirrored digit is another one, or none.
train_dataloader = dict(
    batch_size=50,
    num_workers=0,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root='digits',
        data_prefix='train',
        with_label=False,
        pipeline=[
            dict(type='LoadImageFromFile', color_type='grayscale'),
            dict(
                type='RandomResizedCrop',
                scale=32,
                crop_ratio_range=(0.67, 1.0),
            ),
            dict(type='PackInputs'),
        ],
    ),
)

# On so small a network bfloat16 is slower than float32, on a CPU and a GPU.
optim_wrapper = dict(dtype='float32', optimizer=dict(lr=3e-3))
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        begin=0,
        end=12,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=12,
        end=120,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=120)
auto_scale_lr = dict(base_batch_size=50)

# An entry an epoch for the curve, and one checkpoint, at the end.
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=-1, save_last=True),
)
log_processor = dict(window_size=20)
