# LoMaR pretraining: 4 windows of 7 x 7 patches an image, 39 of 49 masked.
# Positions enter by an iRPE table in each block.
model = dict(
    type='ropim_mm.LoMaR',
    window_size=7,
    num_windows=4,
    mask_ratio=0.8,
    window_sampling='batch',
    backbone=dict(
        type='ropim_mm.LoMaRViT',
        arch='base',
        img_size=224,
        patch_size=16,
        out_type='raw',
        final_norm=True,
        with_mask_token=True,
    ),
    neck=dict(type='ropim_mm.LoMaRNeck', embed_dims=768, patch_size=16),
    head=dict(type='ropim_mm.LoMaRHead', norm_pix=True),
)
