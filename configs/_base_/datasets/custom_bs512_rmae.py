# Any folder of images, at any depth, without labels. One that cannot be read
# is left out, counted and named in the log; so is one without label maps,
# which are made by
#   python tools/dataset_converters/create_fh_masks.py \
#       data/custom data/custom_fh --scales 1000 --on-error skip
_base_ = './imagenet_bs512_rmae.py'

train_pipeline = [
    dict(type='ropim_mm.LoadImage', on_error='skip', defer=True),
    dict(type='ropim_mm.LoadRegions', on_error='skip'),
    *_base_.train_pipeline[2:],
]

train_dataloader = dict(
    dataset=dict(
        data_root='',
        data_prefix=dict(img_path='data/custom', region_path='data/custom_fh'),
        on_missing='skip',
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
