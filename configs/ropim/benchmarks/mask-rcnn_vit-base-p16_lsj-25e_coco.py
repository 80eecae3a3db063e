_base_ = [
    '../../_base_/models/mask-rcnn_ropim.py',
    '../../_base_/datasets/coco_lsj_1024px.py',
    '../../_base_/schedules/mask-rcnn_bs64_25e.py',
    '../../_base_/detection_runtime.py',
]
