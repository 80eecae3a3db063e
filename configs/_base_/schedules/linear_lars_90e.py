# Linear probing with a batch of 16384; rates are for a batch of 256.
optim_wrapper = dict(
    type='ropim_mm.AutocastOptimWrapper',
    dtype='bfloat16',
    optimizer=dict(
        type='LARS', lr=0.1 * 16384 / 256, momentum=0.9, weight_decay=0.0
    ),
)

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-4,
        by_epoch=True,
        begin=0,
        end=10,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=0.0,
        by_epoch=True,
        begin=10,
        end=90,
        convert_to_iter_based=True,
    ),
]

train_cfg = dict(by_epoch=True, max_epochs=90, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=16384)
