# Mask R-CNN on R-MAE's encoder. Its positions start as the sines and cosines
# of pretraining, resized to the grid of 1024 pixels, and are trained.
_base_ = './mask-rcnn_vit.py'

model = dict(backbone=dict(type='ropim_mm.RMAEViT', learn_positions=True))
