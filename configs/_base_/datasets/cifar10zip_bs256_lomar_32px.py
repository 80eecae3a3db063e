# CIFAR-10 at its own size from a zip archive with `train/<class>/` and
# `test/<class>/`, read in place. Pixels are in the order blue, green, red.
_base_ = './cifar10zip_bs512_ropim_32px.py'

train_pipeline = [
    dict(type='ropim_mm.LoadImage', on_error='raise'),
    dict(
        type='ropim_mm.RandomResizedCrop',
        scale=32,
        crop_ratio_range=(0.2, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        backend='torch',
        interpolation='bicubic',
    ),
    *_base_.train_pipeline[2:],
]

train_dataloader = dict(batch_size=256, dataset=dict(pipeline=train_pipeline))
