# ImageNet in one zip archive, read in place. `train_map.txt` and
# `val_map.txt`, in the archive or beside it, have a path and a label a line.
_base_ = './imagenet_bs128_finetune.py'

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ropim_mm.ImageZipMap',
        zip_file='data/imagenet.zip',
        map_file='train_map.txt',
        pipeline=_base_.train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ropim_mm.ImageZipMap',
        zip_file='data/imagenet.zip',
        map_file='val_map.txt',
        test_mode=True,
        pipeline=_base_.test_pipeline,
    )
)
test_dataloader = val_dataloader
