# All images under `train`, at any depth; folder names are not read. Their
# label maps lie likewise under `fh_train`, made by
#   python tools/dataset_converters/create_fh_masks.py \
#       data/imagenet/train data/imagenet/fh_train --scales 1000
# For released maps set `region_suffix='.npy'` in the dataset.
data_preprocessor = dict(
    type='ropim_mm.RegionDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
    non_blocking=True,
)

train_pipeline = [
    dict(type='ropim_mm.LoadImage', on_error='raise', defer=True),
    dict(type='ropim_mm.LoadRegions', on_error='raise'),
    dict(
        type='ropim_mm.RandomResizedCrop',
        scale=224,
        crop_ratio_range=(0.2, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        backend='torch',
        interpolation='bicubic',
    ),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='ropim_mm.SelectRegions',
        num_regions=8,
        patch_size=16,
        sample_type='random',
        filter_small_patches=False,
        as_bits=True,
    ),
    dict(type='ropim_mm.PackRegions'),
]

train_dataloader = dict(
    batch_size=512,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='ropim_mm.RegionDataset',
        data_root='data/imagenet/',
        data_prefix=dict(img_path='train', region_path='fh_train'),
        with_label=False,
        on_missing='raise',
        pipeline=train_pipeline,
    ),
)
