# For comparison: MMPretrain's MAE with the data, optimizer and schedule of
# ROPIM.
_base_ = [
    '../_base_/datasets/imagenet_bs128_ropim.py',
    '../_base_/schedules/ropim_bs1024_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='MAE',
    backbone=dict(
        type='MAEViT',
        arch='b',
        img_size=224,
        patch_size=16,
        mask_ratio=0.75,
    ),
    neck=dict(
        type='MAEPretrainDecoder',
        num_patches=196,
        patch_size=16,
        in_chans=3,
        embed_dim=768,
        decoder_embed_dim=512,
        decoder_depth=8,
        decoder_num_heads=16,
        mlp_ratio=4.0,
    ),
    head=dict(
        type='MAEPretrainHead',
        norm_pix=True,
        patch_size=16,
        loss=dict(type='PixelReconstructionLoss', criterion='L2'),
    ),
    init_cfg=[
        dict(type='Xavier', layer='Linear', distribution='uniform'),
        dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
    ],
)
