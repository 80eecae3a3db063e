# Rates are for a batch of 256. The release does not clip.
optim_wrapper = dict(
    type='ropim_mm.AutocastOptimWrapper',
    dtype='bfloat16',
    optimizer=dict(
        type='AdamW',
        lr=1.5e-4 * 4096 / 256,
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.05,
        fused=True,
    ),
    clip_grad=dict(max_norm=5.0),
    # No decay for vectors and biases; class token and mask token decay.
    constructor='ropim_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(no_decay_names=()),
)

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-6,
        by_epoch=True,
        begin=0,
        end=20,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=0.0,
        by_epoch=True,
        begin=20,
        end=400,
        convert_to_iter_based=True,
    ),
]

train_cfg = dict(by_epoch=True, max_epochs=400)
auto_scale_lr = dict(base_batch_size=4096)
