_base_ = [
    '../../_base_/models/conmim_classifier.py',
    '../../_base_/datasets/imagenet_bs2048_linear.py',
    '../../_base_/schedules/linear_lars_90e.py',
    '../../_base_/finetune_runtime.py',
]

# The encoder as it was pretrained, frozen. The class token takes no part in
# ConMIM's loss: the mean of the patch tokens is probed.
model = dict(
    backbone=dict(
        frozen_stages=12,
        drop_path_rate=0.0,
        final_norm=True,
        use_rel_pos_bias=False,
        use_shared_rel_pos_bias=True,
    ),
    neck=dict(type='ClsBatchNormNeck', input_features=768),
    head=dict(
        loss=dict(_delete_=True, type='CrossEntropyLoss'),
        init_cfg=dict(type='Normal', layer='Linear', std=0.01),
    ),
    train_cfg=dict(_delete_=True),
)

default_hooks = dict(logger=dict(interval=10))
