_base_ = [
    '../_base_/models/lomar.py',
    '../_base_/datasets/imagenet_bs512_crop20.py',
    '../_base_/schedules/lomar_bs4096_1600e.py',
    '../_base_/default_runtime.py',
]
