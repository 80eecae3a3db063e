_base_ = [
    '../../_base_/models/mask-rcnn_conmim.py',
    '../../_base_/datasets/coco_lsj_1024px.py',
    '../../_base_/schedules/mask-rcnn_bs64_100e.py',
    '../../_base_/detection_runtime.py',
]

model = dict(backbone=dict(arch='small'), neck=dict(in_channels=384))
