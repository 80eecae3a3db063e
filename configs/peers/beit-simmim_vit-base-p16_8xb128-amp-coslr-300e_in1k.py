# For comparison: the encoder of ROPIM as MMPretrain has it, with MMPretrain's
# SimMIM head. Data, optimizer and schedule are ROPIM's; there is no
# projection, patches are masked instead.
_base_ = [
    '../_base_/datasets/imagenet_bs128_ropim.py',
    '../_base_/schedules/ropim_bs1024_300e.py',
    '../_base_/default_runtime.py',
]

custom_imports = dict(imports=['ropim_mm', 'ropim_mm.evaluation.peers'])

model = dict(
    type='SimMIM',
    backbone=dict(
        type='ropim_mm.BEiTSimMIMViT',
        arch='base',
        img_size=224,
        patch_size=16,
        drop_path_rate=0.1,
        out_type='raw',
        final_norm=True,
        use_abs_pos_emb=False,
        use_rel_pos_bias=False,
        use_shared_rel_pos_bias=True,
        layer_scale_init_value=0.1,
    ),
    neck=dict(type='SimMIMLinearDecoder', in_channels=768, encoder_stride=16),
    head=dict(
        type='SimMIMHead',
        patch_size=16,
        loss=dict(type='PixelReconstructionLoss', criterion='L1', channel=3),
    ),
)

train_pipeline = [
    dict(type='ropim_mm.LoadImage', on_error='raise', defer=True),
    dict(
        type='ropim_mm.RandomResizedCrop',
        scale=224,
        crop_ratio_range=(0.67, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        backend='torch',
        interpolation='bilinear',
    ),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='SimMIMMaskGenerator',
        input_size=224,
        mask_patch_size=32,
        model_patch_size=16,
        mask_ratio=0.6,
    ),
    dict(type='PackInputs'),
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
