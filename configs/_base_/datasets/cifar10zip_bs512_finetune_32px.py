# CIFAR-10 at its own size from a zip archive with `train/<class>/` and
# `test/<class>/`, read in place. Pixels are in the order blue, green, red.
_base_ = './imagenet_bs128_finetune.py'

data_preprocessor = dict(num_classes=10)

# After the crop: flip, RandAugment and erasing as there.
train_pipeline = [
    dict(type='ropim_mm.LoadImage', on_error='raise'),
    dict(type='RandomCrop', crop_size=32, padding=4),
    *_base_.train_pipeline[2:],
]
test_pipeline = [
    dict(type='ropim_mm.LoadImage', on_error='raise'),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=512,
    dataset=dict(
        _delete_=True,
        type='ropim_mm.ImageZip',
        zip_file='data/cifar10-subset.zip',
        prefix='train',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=512,
    dataset=dict(
        _delete_=True,
        type='ropim_mm.ImageZip',
        zip_file='data/cifar10-subset.zip',
        prefix='test',
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
