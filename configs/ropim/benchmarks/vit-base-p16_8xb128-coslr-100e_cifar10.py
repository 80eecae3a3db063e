_base_ = [
    '../../_base_/models/ropim_classifier.py',
    '../../_base_/datasets/cifar10_bs128_finetune.py',
    '../../_base_/schedules/ropim_finetune_bs1024_100e.py',
    '../../_base_/finetune_runtime.py',
]

model = dict(head=dict(num_classes=10))
