# Windows of 7 x 7 patches cost the same in an image of 24 x 24.
_base_ = [
    '../_base_/models/lomar.py',
    '../_base_/datasets/imagenet_bs512_crop20_384px.py',
    '../_base_/schedules/lomar_bs4096_400e.py',
    '../_base_/default_runtime.py',
]

model = dict(backbone=dict(img_size=384))
