# 100 classes of ImageNet: `train/<class>/` and `val/<class>/`.
_base_ = './imagenet_bs128_finetune.py'

data_preprocessor = dict(num_classes=100)

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/imagenet100/',
        data_prefix='train',
        pipeline=_base_.train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/imagenet100/',
        data_prefix='val',
        test_mode=True,
        pipeline=_base_.test_pipeline,
    )
)
test_dataloader = val_dataloader
