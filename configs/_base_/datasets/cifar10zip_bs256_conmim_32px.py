# CIFAR-10 at its own size from a zip archive with `train/<class>/` and
# `test/<class>/`, read in place. Pixels are in the order blue, green, red.
_base_ = './imagenet_bs256_conmim.py'

# After the crop: flip and two views as there.
train_pipeline = [
    dict(type='ropim_mm.LoadImage', on_error='raise'),
    dict(
        type='ropim_mm.RandomResizedCrop',
        scale=32,
        crop_ratio_range=(0.08, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        backend='torch',
        interpolation='bicubic',
    ),
    *_base_.train_pipeline[2:],
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
