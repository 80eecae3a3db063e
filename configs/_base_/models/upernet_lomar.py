# UperNet on LoMaR's encoder: its iRPE tables serve every image size.
_base_ = './upernet.py'

model = dict(backbone=dict(type='ropim_mm.LoMaRViT'))
