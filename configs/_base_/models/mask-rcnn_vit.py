# Mask R-CNN as in ViTDet: a plain encoder, most of whose blocks look inside
# windows, and a pyramid made from its last map. The type of the encoder is in
# mask-rcnn_<method>. Where memory is short: model.backbone.with_cp=True.
# Give the weights by --cfg-options model.backbone.init_cfg.checkpoint=FILE.
_base_ = './mask-rcnn_heads.py'

model = dict(
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        # Below and to the right, with the mean colour. Photos of at most 1024
        # pixels a side become 1024x1024, and boxes still end at their edges.
        pad_size_divisor=1024,
        pad_value=0,
        pad_mask=True,
    ),
    backbone=dict(
        arch='base',
        img_size=1024,
        patch_size=16,
        drop_path_rate=0.1,
        out_type='featmap',
        out_indices=-1,
        final_norm=False,
        window_size=14,
        global_blocks=(2, 5, 8, 11),
        with_cp=False,
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.'),
    ),
    neck=dict(
        type='ropim_mm.SimpleFeaturePyramid',
        in_channels=768,
        out_channels=256,
        num_outs=5,
        norm_cfg=_base_.norm_cfg,
    ),
)
