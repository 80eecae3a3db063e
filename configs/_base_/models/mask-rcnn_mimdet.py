# Mask R-CNN as in MIMDet: a convolutional stem, an encoder that sees half of
# the tokens in training, a decoder, and an ordinary feature pyramid. The norms
# of pyramid and heads are over the batch of all devices. Bias tables and final
# norm of the encoder are those of pretraining; the patch embedding of the file
# is not used. Where memory is short: model.backbone.with_cp=True.
# Give the weights by --cfg-options model.backbone.init_cfg.checkpoint=FILE.
_base_ = './mask-rcnn_heads.py'

norm_cfg = dict(_delete_=True, type='SyncBN', requires_grad=True)

model = dict(
    type='ropim_mm.MIMDetMaskRCNN',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
        pad_mask=True,
    ),
    backbone=dict(
        type='ropim_mm.MIMDet',
        sample_ratio=0.5,
        decoder_dims=512,
        decoder_depth=4,
        decoder_heads=16,
        encoder=dict(
            type='ropim_mm.ConMIMViT',
            arch='base',
            img_size=224,
            patch_size=16,
            drop_path_rate=0.1,
            out_type='raw',
            final_norm=True,
            use_abs_pos_emb=False,
            use_rel_pos_bias=True,
            use_shared_rel_pos_bias=False,
            layer_scale_init_value=0.1,
            with_cp=False,
        ),
        init_cfg=dict(
            type='Pretrained', checkpoint='', prefix='momentum.backbone.'
        ),
    ),
    neck=dict(
        type='FPN',
        in_channels=[192, 384, 512, 512],
        out_channels=256,
        num_outs=5,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
    roi_head=dict(
        bbox_head=dict(norm_cfg=norm_cfg), mask_head=dict(norm_cfg=norm_cfg)
    ),
)
