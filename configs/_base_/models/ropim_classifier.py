# A pretrained encoder with a linear classifier on the mean of its patch
# tokens. Each block has its own bias table, started from the shared one.
# Give the weights by --cfg-options model.backbone.init_cfg.checkpoint=FILE.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ropim_mm.ROPIMViT',
        arch='base',
        img_size=224,
        patch_size=16,
        drop_path_rate=0.1,
        out_type='avg_featmap',
        final_norm=False,
        use_abs_pos_emb=False,
        use_rel_pos_bias=True,
        use_shared_rel_pos_bias=False,
        layer_scale_init_value=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.'),
    ),
    head=dict(
        type='ropim_mm.LinearClsHead',
        num_classes=1000,
        in_channels=768,
        loss=dict(
            type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'
        ),
        # Not 'TruncNormal': cut at +-2, 10^5 deviations away, it now and then
        # puts a weight at exactly -2.
        init_cfg=dict(type='Normal', layer='Linear', std=0.02 * 0.001),
    ),
    # One of the two for every batch, with equal chances.
    train_cfg=dict(
        augments=[
            dict(type='Mixup', alpha=0.8),
            dict(type='CutMix', alpha=1.0),
        ]
    ),
)
