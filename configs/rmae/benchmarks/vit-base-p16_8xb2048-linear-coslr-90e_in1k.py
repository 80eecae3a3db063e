_base_ = [
    '../../_base_/models/rmae_classifier.py',
    '../../_base_/datasets/imagenet_bs2048_linear.py',
    '../../_base_/schedules/linear_lars_90e.py',
    '../../_base_/finetune_runtime.py',
]

# The encoder as it was pretrained, frozen; its class token is probed, as MAE's
# is in MMPretrain.
model = dict(
    backbone=dict(
        frozen_stages=12,
        drop_path_rate=0.0,
        out_type='cls_token',
        final_norm=True,
        learn_positions=False,
    ),
    neck=dict(type='ClsBatchNormNeck', input_features=768),
    head=dict(
        loss=dict(_delete_=True, type='CrossEntropyLoss'),
        init_cfg=dict(type='Normal', layer='Linear', std=0.01),
    ),
    train_cfg=dict(_delete_=True),
)

default_hooks = dict(logger=dict(interval=10))
