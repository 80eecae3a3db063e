# CIFAR-10 at its own size. The dataset gives pixels, in the order red, green,
# blue.
_base_ = './imagenet_bs128_ropim.py'

data_preprocessor = dict(to_rgb=False)

train_pipeline = [
    dict(
        type='ropim_mm.RandomResizedCrop',
        scale=32,
        crop_ratio_range=(0.67, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        backend='torch',
        interpolation='bilinear',
    ),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=512,
    dataset=dict(
        _delete_=True,
        type='CIFAR10',
        data_root='data/cifar10/',
        download=False,
        split='train',
        pipeline=train_pipeline,
    ),
)
