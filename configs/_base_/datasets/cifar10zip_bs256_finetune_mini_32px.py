# An encoder of 0.5 M parameters sees each image only 15 times: shifted crops
# and flips alone.
_base_ = './cifar10zip_bs512_finetune_32px.py'

train_pipeline = [
    dict(type='ropim_mm.LoadImage', on_error='raise'),
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=256, num_workers=1, dataset=dict(pipeline=train_pipeline)
)
val_dataloader = dict(batch_size=256, num_workers=1)
test_dataloader = val_dataloader
