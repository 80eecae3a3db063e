_base_ = './cifar10_bs128_finetune.py'

data_preprocessor = dict(num_classes=100)

train_dataloader = dict(
    dataset=dict(type='CIFAR100', data_root='data/cifar100/', download=False)
)
val_dataloader = dict(
    dataset=dict(type='CIFAR100', data_root='data/cifar100/', download=False)
)
test_dataloader = val_dataloader
