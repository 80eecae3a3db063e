# Any folder of images, at any depth, without labels. One that cannot be read
# is left out, counted and named in the log.
_base_ = './imagenet_bs256_conmim.py'

train_pipeline = [
    dict(type='ropim_mm.LoadImage', on_error='skip', defer=True),
    *_base_.train_pipeline[1:],
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
