# Your own images: --cfg-options train_dataloader.dataset.data_root=FOLDER
_base_ = [
    '../_base_/models/conmim.py',
    '../_base_/datasets/custom_bs256_conmim.py',
    '../_base_/schedules/conmim_bs2048_300e.py',
    '../_base_/conmim_runtime.py',
]

custom_hooks = [
    *_base_.custom_hooks,
    # How many images could not be read, in the log.
    dict(type='ropim_mm.SkippedImagesHook'),
]
