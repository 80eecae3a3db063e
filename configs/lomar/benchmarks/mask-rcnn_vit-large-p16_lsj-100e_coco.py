_base_ = [
    '../../_base_/models/mask-rcnn_lomar.py',
    '../../_base_/datasets/coco_lsj_1024px.py',
    '../../_base_/schedules/mask-rcnn_bs64_100e.py',
    '../../_base_/detection_runtime.py',
]

model = dict(
    backbone=dict(
        arch='large',
        drop_path_rate=0.4,
        global_blocks=(5, 11, 17, 23),
    ),
    neck=dict(in_channels=1024),
)

optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.8))
