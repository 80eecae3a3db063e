_base_ = [
    '../../_base_/models/ropim_classifier.py',
    '../../_base_/datasets/cifar10_bs512_finetune_32px.py',
    '../../_base_/schedules/ropim_tiny_finetune_bs512_100e.py',
    '../../_base_/finetune_runtime.py',
]

model = dict(
    backbone=dict(arch='tiny', img_size=32, patch_size=4),
    head=dict(in_channels=192, num_classes=10),
)

default_hooks = dict(logger=dict(interval=50))
