_base_ = [
    '../../_base_/models/conmim_classifier.py',
    '../../_base_/datasets/imagenet_bs128_finetune_384px.py',
    '../../_base_/schedules/conmim_finetune_bs1024_100e.py',
    '../../_base_/finetune_runtime.py',
]

# Tables are resized from the 14 x 14 patches of pretraining to 24 x 24.
model = dict(backbone=dict(img_size=384))
