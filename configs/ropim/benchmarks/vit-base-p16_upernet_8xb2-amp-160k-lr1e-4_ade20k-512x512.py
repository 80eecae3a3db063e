_base_ = [
    '../../_base_/models/upernet_ropim.py',
    '../../_base_/datasets/ade20k_bs2_512px.py',
    '../../_base_/schedules/upernet_bs16_160k.py',
    '../../_base_/segmentation_runtime.py',
]
