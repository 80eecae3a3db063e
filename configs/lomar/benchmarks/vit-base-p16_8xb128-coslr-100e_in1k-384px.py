_base_ = [
    '../../_base_/models/lomar_classifier.py',
    '../../_base_/datasets/imagenet_bs128_finetune_384px.py',
    '../../_base_/schedules/lomar_finetune_bs1024_100e.py',
    '../../_base_/finetune_runtime.py',
]

model = dict(backbone=dict(img_size=384))
