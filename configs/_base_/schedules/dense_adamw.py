# What segmentation and detection share: AdamW with layer decay in bfloat16,
# and a number of updates as length.
optim_wrapper = dict(
    type='ropim_mm.AutocastOptimWrapper',
    dtype='bfloat16',
    optimizer=dict(type='AdamW', betas=(0.9, 0.999), eps=1e-8, fused=True),
    constructor='ropim_mm.LayerDecayOptimWrapperConstructor',
    # Nothing that says where a token is decays, besides norms and biases.
    paramwise_cfg=dict(
        no_decay_names=(
            'cls_token',
            'pos_embed',
            'relative_position_bias_table',
            'lookup_table_weight',
        ),
    ),
)

train_cfg = dict(by_epoch=False)
val_cfg = dict()
test_cfg = dict()
