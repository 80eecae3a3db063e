# BEiT and its kin: a lower rate that falls off less from block to block.
_base_ = './upernet_bs16_160k.py'

optim_wrapper = dict(
    optimizer=dict(lr=3e-5 * 16 / 16),
    paramwise_cfg=dict(layer_decay_rate=0.9),
)
