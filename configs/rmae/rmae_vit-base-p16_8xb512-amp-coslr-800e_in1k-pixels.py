# MAE: the same model, optimizer and schedule without regions. Nothing reads
# or needs label maps.
_base_ = [
    '../_base_/models/rmae.py',
    '../_base_/datasets/imagenet_bs512_crop20.py',
    '../_base_/schedules/rmae_bs4096_800e.py',
    '../_base_/default_runtime.py',
]

model = dict(num_regions=0)
