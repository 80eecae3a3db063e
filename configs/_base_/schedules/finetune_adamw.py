# Fine-tuning a classifier. A config adds the rate, its layer decay, clipping,
# its schedule and the number of epochs.
optim_wrapper = dict(
    type='ropim_mm.AutocastOptimWrapper',
    dtype='bfloat16',
    optimizer=dict(
        type='AdamW',
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.05,
        fused=True,
    ),
    constructor='ropim_mm.LayerDecayOptimWrapperConstructor',
)

train_cfg = dict(by_epoch=True, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=1024)
