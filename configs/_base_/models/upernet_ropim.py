# UperNet on ROPIM's encoder. Each block has its own bias table, started from
# the shared one of pretraining and resized to the grid of the crop.
_base_ = './upernet.py'

model = dict(
    backbone=dict(
        type='ropim_mm.ROPIMViT',
        use_abs_pos_emb=False,
        use_rel_pos_bias=True,
        use_shared_rel_pos_bias=False,
        layer_scale_init_value=0.1,
    )
)
