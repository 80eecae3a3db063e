# ViTDet's schedule: 184,375 updates of 64 images, 100 epochs of COCO, with a
# tenth of the rate after 88 and again after 96 epochs.
optim_wrapper = dict(
    type='ropim_mm.AutocastOptimWrapper',
    dtype='bfloat16',
    optimizer=dict(
        type='AdamW',
        lr=1e-4 * 64 / 64,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.1,
        fused=True,
    ),
    constructor='ropim_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        layer_decay_rate=0.7,
        # Nothing that says where a token is, besides norms and biases.
        no_decay_names=(
            'cls_token',
            'pos_embed',
            'relative_position_bias_table',
            'lookup_table_weight',
        ),
    ),
)

param_scheduler = [
    dict(
        type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250
    ),
    dict(
        type='MultiStepLR',
        milestones=[163889, 177546],
        gamma=0.1,
        by_epoch=False,
        begin=0,
        end=184375,
    ),
]

train_cfg = dict(by_epoch=False, max_iters=184375, val_interval=5000)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=64)
