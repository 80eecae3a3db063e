# CIFAR-10 at its own size from a zip archive with `train/<class>/` and
# `test/<class>/`, read in place. On images this small the segments of the
# usual scale would be the whole image; the label maps are made by
#   python tools/dataset_converters/create_fh_masks.py \
#       data/cifar10-subset.zip data/fh_cifar10 --scales 100,200 \
#       --min-sizes 20,40
_base_ = './imagenet_bs512_rmae.py'

train_pipeline = [
    dict(type='ropim_mm.LoadImage', on_error='raise'),
    dict(type='ropim_mm.LoadRegions', on_error='raise'),
    dict(
        type='ropim_mm.RandomResizedCrop',
        scale=32,
        crop_ratio_range=(0.2, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        backend='torch',
        interpolation='bicubic',
    ),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='ropim_mm.SelectRegions',
        num_regions=8,
        patch_size=4,
        sample_type='random',
        filter_small_patches=False,
        as_bits=True,
    ),
    dict(type='ropim_mm.PackRegions'),
]

train_dataloader = dict(
    batch_size=256,
    num_workers=2,
    dataset=dict(
        _delete_=True,
        type='ropim_mm.RegionZip',
        zip_file='data/cifar10-subset.zip',
        prefix='train',
        data_prefix=dict(region_path='data/fh_cifar10'),
        with_label=False,
        pipeline=train_pipeline,
    ),
)
