_base_ = [
    '../../_base_/models/upernet_lomar.py',
    '../../_base_/datasets/ade20k_bs2_512px.py',
    '../../_base_/schedules/upernet_bs16_160k.py',
    '../../_base_/segmentation_runtime.py',
]

model = dict(
    backbone=dict(
        arch='large',
        drop_path_rate=0.2,
        out_indices=(7, 11, 15, 23),
    ),
    neck=dict(embed_dim=1024),
    decode_head=dict(in_channels=[1024, 1024, 1024, 1024], channels=1024),
    auxiliary_head=dict(in_channels=1024),
)
