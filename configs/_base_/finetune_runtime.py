# A classifier is evaluated after every epoch; its best weights are kept.
_base_ = './default_runtime.py'

default_hooks = dict(checkpoint=dict(interval=1, save_best='auto'))
