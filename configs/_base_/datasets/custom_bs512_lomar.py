# Any folder of images, at any depth, without labels. One that cannot be read
# is left out, counted and named in the log.
_base_ = './custom_bs128_ropim.py'

train_pipeline = [
    dict(type='ropim_mm.LoadImage', on_error='skip', defer=True),
    dict(
        type='ropim_mm.RandomResizedCrop',
        scale=224,
        crop_ratio_range=(0.2, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        backend='torch',
        interpolation='bicubic',
    ),
    *_base_.train_pipeline[2:],
]

train_dataloader = dict(batch_size=512, dataset=dict(pipeline=train_pipeline))
