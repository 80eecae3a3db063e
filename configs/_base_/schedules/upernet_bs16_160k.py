# 160,000 updates of 16 images, of which 1500 are warm-up, then linearly to 0.
# Rate and layer decay are those of MAE and its kin.
optim_wrapper = dict(
    type='ropim_mm.AutocastOptimWrapper',
    dtype='bfloat16',
    optimizer=dict(
        type='AdamW',
        lr=1e-4 * 16 / 16,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.05,
        fused=True,
    ),
    constructor='ropim_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        layer_decay_rate=0.65,
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
        type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500
    ),
    dict(
        type='PolyLR',
        power=1.0,
        eta_min=0.0,
        by_epoch=False,
        begin=1500,
        end=160000,
    ),
]

train_cfg = dict(by_epoch=False, max_iters=160000, val_interval=16000)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=16)
