# The same from a zip archive with `train/<class>/` and `test/<class>/`, read
# in place.
_base_ = './cifar10_bs512_ropim_32px.py'

data_preprocessor = dict(to_rgb=True)

train_pipeline = [
    dict(type='ropim_mm.LoadImage', on_error='raise'),
    dict(
        type='RandomResizedCrop',
        scale=32,
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
        _delete_=True,
        type='ropim_mm.ImageZip',
        zip_file='data/cifar10-subset.zip',
        prefix='train',
        with_label=False,
        pipeline=train_pipeline,
    )
)
