_base_ = './imagenet_bs128_ropim.py'

train_dataloader = dict(dataset=dict(data_root='data/imagenet100/'))
