_base_ = './ropim_vit-base-p16_8xb128-amp-coslr-800e_in1k.py'

model = dict(backbone=dict(arch='small'), neck=dict(embed_dims=384))
