# Mask R-CNN on ROPIM's encoder. Each block has its own bias table, of its
# window or of the whole image, started from the shared one of pretraining.
_base_ = './mask-rcnn_vit.py'

model = dict(
    backbone=dict(
        type='ropim_mm.ROPIMViT',
        use_abs_pos_emb=False,
        use_rel_pos_bias=True,
        use_shared_rel_pos_bias=False,
        layer_scale_init_value=0.1,
    )
)
