# As ROPIM's, with LoMaR's encoder: its iRPE tables serve every image size.
_base_ = './ropim_classifier.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='ropim_mm.LoMaRViT',
        arch='base',
        img_size=224,
        patch_size=16,
        drop_path_rate=0.1,
        out_type='avg_featmap',
        final_norm=False,
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.'),
    )
)
