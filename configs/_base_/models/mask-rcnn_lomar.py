# Mask R-CNN on LoMaR's encoder: its iRPE tables serve windows and images of
# every size.
_base_ = './mask-rcnn_vit.py'

model = dict(backbone=dict(type='ropim_mm.LoMaRViT'))
