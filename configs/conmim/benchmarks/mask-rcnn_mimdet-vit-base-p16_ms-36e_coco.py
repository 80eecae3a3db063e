_base_ = [
    '../../_base_/models/mask-rcnn_mimdet.py',
    '../../_base_/datasets/coco_ms_480-800px.py',
    '../../_base_/schedules/mask-rcnn_mimdet_bs64_36e.py',
    '../../_base_/detection_runtime.py',
]
