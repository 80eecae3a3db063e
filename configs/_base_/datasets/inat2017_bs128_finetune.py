# iNaturalist 2017. The lists `train2017.txt` and `val2017.txt` (a path and a
# label a line) are made from the released JSON files: configs/ropim/README.md.
_base_ = './imagenet_bs128_finetune.py'

data_preprocessor = dict(num_classes=5089)

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/inat2017/',
        ann_file='train2017.txt',
        pipeline=_base_.train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/inat2017/',
        ann_file='val2017.txt',
        test_mode=True,
        pipeline=_base_.test_pipeline,
    )
)
test_dataloader = val_dataloader
