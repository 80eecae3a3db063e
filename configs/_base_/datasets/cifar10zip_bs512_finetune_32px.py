# The same from a zip archive with `train/<class>/` and `test/<class>/`, read
# in place.
_base_ = './cifar10_bs512_finetune_32px.py'

data_preprocessor = dict(to_rgb=True)

# Pixels are in the order blue, green, red.
train_pipeline = [
    dict(type='ropim_mm.LoadImage', on_error='raise'),
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    # rand-m9-mstd0.5-inc1
    dict(
        type='RandAugment',
        policies='timm_increasing',
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(pad_val=[104, 116, 124], interpolation='bicubic'),
    ),
    dict(
        type='RandomErasing',
        erase_prob=0.25,
        mode='rand',
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=[103.53, 116.28, 123.675],
        fill_std=[57.375, 57.12, 58.395],
    ),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='ropim_mm.LoadImage', on_error='raise'),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ropim_mm.ImageZip',
        zip_file='data/cifar10-subset.zip',
        prefix='train',
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ropim_mm.ImageZip',
        zip_file='data/cifar10-subset.zip',
        prefix='test',
        test_mode=True,
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
