_base_ = [
    '../_base_/models/conmim.py',
    '../_base_/datasets/imagenet_bs256_conmim.py',
    '../_base_/schedules/conmim_large_bs2048_1600e.py',
    '../_base_/conmim_runtime.py',
]

model = dict(
    backbone=dict(arch='large', layer_scale_init_value=1e-5),
    neck=dict(in_channels=1024),
)
