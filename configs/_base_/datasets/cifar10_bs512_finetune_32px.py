# CIFAR-10 at its own size: shifted crops, and whole images in evaluation.
_base_ = './cifar10_bs128_finetune.py'

# After the crop: flip, RandAugment and erasing as there.
train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=4),
    *_base_.train_pipeline[1:],
]
test_pipeline = [dict(type='PackInputs')]

train_dataloader = dict(batch_size=512, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=512, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
