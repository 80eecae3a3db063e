_base_ = [
    '../../_base_/models/rmae_classifier.py',
    '../../_base_/datasets/imagenet_bs128_finetune.py',
    '../../_base_/schedules/rmae_finetune_bs1024_100e.py',
    '../../_base_/finetune_runtime.py',
]
