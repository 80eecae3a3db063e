# 144,000 updates. That is about 4990 passes; the name has the 4000 epochs that
# the released file speaks of.
_base_ = [
    '../_base_/models/rmae.py',
    '../_base_/datasets/coco_bs512_rmae.py',
    '../_base_/schedules/rmae_bs4096_144k.py',
    '../_base_/iteration_runtime.py',
]

train_dataloader = dict(sampler=dict(type='InfiniteSampler', shuffle=True))
