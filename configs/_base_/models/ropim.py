# ROPIM pretraining. Positions enter by one bias table that all blocks share.
model = dict(
    type='ropim_mm.ROPIM',
    sketch_ratio=0.14,
    backbone=dict(
        type='ropim_mm.ROPIMViT',
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
        # Initial weights are cut at one standard deviation.
        init_cutoff=0.02,
    ),
    neck=dict(type='ropim_mm.ROPIMNeck', embed_dims=768, patch_size=16),
    head=dict(type='ropim_mm.ROPIMHead', patch_size=16),
)
