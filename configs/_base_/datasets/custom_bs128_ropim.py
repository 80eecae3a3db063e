# Any folder of images, at any depth, without labels. One that cannot be read
# is left out, counted and named in the log.
_base_ = './imagenet_bs128_ropim.py'

train_pipeline = [
    dict(type='ropim_mm.LoadImage', on_error='skip'),
    dict(
        type='RandomResizedCrop',
        scale=224,
        crop_ratio_range=(0.67, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        backend='pillow',
        interpolation='bilinear',
    ),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    dataset=dict(
        data_root='data/custom/',
        data_prefix='',
        extensions=(
            '.jpg',
            '.jpeg',
            '.png',
            '.ppm',
            '.bmp',
            '.pgm',
            '.tif',
            '.tiff',
            '.webp',
        ),
        pipeline=train_pipeline,
    )
)
