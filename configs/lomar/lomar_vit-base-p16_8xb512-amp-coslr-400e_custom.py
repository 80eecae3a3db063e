# Your own images: --cfg-options train_dataloader.dataset.data_root=FOLDER
_base_ = [
    '../_base_/models/lomar.py',
    '../_base_/datasets/custom_bs512_lomar.py',
    '../_base_/schedules/lomar_bs4096_400e.py',
    '../_base_/default_runtime.py',
]

custom_hooks = [
    *_base_.custom_hooks,
    # How many images could not be read, in the log.
    dict(type='ropim_mm.SkippedImagesHook'),
]
