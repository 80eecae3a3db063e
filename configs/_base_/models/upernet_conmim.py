# As ROPIM's, from the momentum copy of a pretraining checkpoint. For a file
# of extract_backbone.py: model.backbone.init_cfg.prefix=backbone.
_base_ = './upernet_ropim.py'

model = dict(
    backbone=dict(
        type='ropim_mm.ConMIMViT',
        init_cfg=dict(prefix='momentum.backbone.'),
    )
)
