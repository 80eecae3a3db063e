# At 384 px the whole short side is evaluated, without the margin of 224 px.
_base_ = './imagenet_bs128_finetune.py'

train_pipeline = [
    dict(type='ropim_mm.LoadImage', on_error='raise'),
    dict(
        type='RandomResizedCrop',
        scale=384,
        crop_ratio_range=(0.08, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        backend='pillow',
        interpolation='bicubic',
    ),
    # After the crop: flip, RandAugment and erasing as there.
    *_base_.train_pipeline[2:],
]
test_pipeline = [
    dict(type='ropim_mm.LoadImage', on_error='raise'),
    dict(
        type='ResizeEdge',
        scale=384,
        edge='short',
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='CenterCrop', crop_size=384),
    dict(type='PackInputs'),
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
