# ConMIM pretraining. Positions enter by one bias table that all blocks share.
model = dict(
    type='ropim_mm.ConMIM',
    # Cells of 2 x 2 patches: 37 of 49 at 224 px, 148 of 196 patches.
    mask_ratio=0.75,
    mask_cell_size=2,
    backbone=dict(
        type='ropim_mm.ConMIMViT',
        arch='base',
        img_size=224,
        patch_size=16,
        drop_path_rate=0.0,
        out_type='raw',
        final_norm=True,
        with_mask_token=True,
        use_abs_pos_emb=False,
        use_rel_pos_bias=False,
        use_shared_rel_pos_bias=True,
        layer_scale_init_value=0.1,
        # Initial weights are cut at one standard deviation.
        init_cutoff=0.02,
    ),
    neck=dict(
        type='ropim_mm.ConMIMNeck',
        in_channels=768,
        hid_channels=4096,
        out_channels=256,
    ),
    head=dict(type='ropim_mm.ConMIMHead', temperature=0.1),
)
