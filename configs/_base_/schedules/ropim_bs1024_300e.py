# Rates are for a batch of 512 and grow with it, warm-up and end included.
optim_wrapper = dict(
    type='ropim_mm.AutocastOptimWrapper',
    dtype='bfloat16',
    optimizer=dict(
        type='AdamW',
        lr=1.5e-4 * 1024 / 512,
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.05,
        fused=True,
    ),
    clip_grad=dict(max_norm=5.0),
    # No decay for vectors, biases and the class token.
    constructor='ropim_mm.LayerDecayOptimWrapperConstructor',
)

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=5e-7 / 1.5e-4,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=5e-6 * 1024 / 512,
        by_epoch=True,
        begin=5,
        end=300,
        convert_to_iter_based=True,
    ),
]

train_cfg = dict(by_epoch=True, max_epochs=300)
auto_scale_lr = dict(base_batch_size=1024)
