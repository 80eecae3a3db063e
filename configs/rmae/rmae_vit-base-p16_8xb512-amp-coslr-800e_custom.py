# Your own images and their label maps, FOLDER and MAPS:
#   --cfg-options train_dataloader.dataset.data_prefix.img_path=FOLDER
#       train_dataloader.dataset.data_prefix.region_path=MAPS
_base_ = [
    '../_base_/models/rmae.py',
    '../_base_/datasets/custom_bs512_rmae.py',
    '../_base_/schedules/rmae_bs4096_800e.py',
    '../_base_/default_runtime.py',
]

custom_hooks = [
    *_base_.custom_hooks,
    # How many images and maps could not be read, in the log.
    dict(type='ropim_mm.SkippedImagesHook'),
]
