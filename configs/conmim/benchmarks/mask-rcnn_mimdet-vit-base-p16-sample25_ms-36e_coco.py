# The encoder sees a quarter of the tokens in training.
_base_ = './mask-rcnn_mimdet-vit-base-p16_ms-36e_coco.py'

model = dict(backbone=dict(sample_ratio=0.25))
