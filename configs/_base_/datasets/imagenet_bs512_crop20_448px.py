_base_ = './imagenet_bs512_crop20.py'

train_pipeline = [
    dict(type='ropim_mm.LoadImage', on_error='raise', defer=True),
    dict(
        type='ropim_mm.RandomResizedCrop',
        scale=448,
        crop_ratio_range=(0.2, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        backend='torch',
        interpolation='bicubic',
    ),
    *_base_.train_pipeline[2:],
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
