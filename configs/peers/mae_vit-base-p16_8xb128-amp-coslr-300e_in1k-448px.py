# For comparison: MMPretrain's MAE on images of 448 x 448.
_base_ = 'mae_vit-base-p16_8xb128-amp-coslr-300e_in1k.py'

# Encoder and decoder each have a table of positions.
model = dict(backbone=dict(img_size=448), neck=dict(num_patches=784))

train_pipeline = [
    dict(type='ropim_mm.LoadImage', on_error='raise'),
    dict(
        type='ropim_mm.RandomResizedCrop',
        scale=448,
        crop_ratio_range=(0.67, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        backend='pillow',
        interpolation='bilinear',
    ),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
