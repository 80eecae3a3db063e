# The archive: --cfg-options train_dataloader.dataset.zip_file=FILE
_base_ = [
    '../_base_/models/ropim.py',
    '../_base_/datasets/cifar10zip_bs512_ropim_32px.py',
    '../_base_/schedules/ropim_tiny_bs512_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(arch='tiny', img_size=32, patch_size=4),
    neck=dict(embed_dims=192, patch_size=4),
    head=dict(patch_size=4),
)

default_hooks = dict(logger=dict(interval=50))
