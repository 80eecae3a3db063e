# UperNet on R-MAE's encoder. Its positions start as the sines and cosines of
# pretraining, resized to the grid of the crop, and are trained.
_base_ = './upernet.py'

model = dict(backbone=dict(type='ropim_mm.RMAEViT', learn_positions=True))
