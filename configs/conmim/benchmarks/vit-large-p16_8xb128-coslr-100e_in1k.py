_base_ = [
    '../../_base_/models/conmim_classifier.py',
    '../../_base_/datasets/imagenet_bs128_finetune.py',
    '../../_base_/schedules/conmim_finetune_bs1024_100e.py',
    '../../_base_/finetune_runtime.py',
]

model = dict(
    backbone=dict(
        arch='large', drop_path_rate=0.2, layer_scale_init_value=1e-5
    ),
    head=dict(in_channels=1024),
)

optim_wrapper = dict(
    optimizer=dict(lr=2.5e-4 * 1024 / 256),
    paramwise_cfg=dict(layer_decay_rate=0.75),
)
