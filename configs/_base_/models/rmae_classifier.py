# As ROPIM's, with the encoder of R-MAE. Its positions start as the sines and
# cosines of pretraining and are trained.
_base_ = './ropim_classifier.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='ropim_mm.RMAEViT',
        arch='base',
        img_size=224,
        patch_size=16,
        drop_path_rate=0.1,
        out_type='avg_featmap',
        final_norm=False,
        learn_positions=True,
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.'),
    )
)
