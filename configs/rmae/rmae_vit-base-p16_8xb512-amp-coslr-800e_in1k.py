_base_ = [
    '../_base_/models/rmae.py',
    '../_base_/datasets/imagenet_bs512_rmae.py',
    '../_base_/schedules/rmae_bs4096_800e.py',
    '../_base_/default_runtime.py',
]
