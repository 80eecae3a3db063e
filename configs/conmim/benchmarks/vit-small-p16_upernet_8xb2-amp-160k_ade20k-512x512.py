_base_ = [
    '../../_base_/models/upernet_conmim.py',
    '../../_base_/datasets/ade20k_bs2_512px.py',
    '../../_base_/schedules/upernet_beit_bs16_160k.py',
    '../../_base_/segmentation_runtime.py',
]

model = dict(
    backbone=dict(arch='small'),
    neck=dict(embed_dim=384),
    decode_head=dict(in_channels=[384, 384, 384, 384]),
    auxiliary_head=dict(in_channels=384),
)
