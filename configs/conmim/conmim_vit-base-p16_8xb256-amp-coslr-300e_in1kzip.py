# The archive: --cfg-options train_dataloader.dataset.zip_file=FILE
_base_ = [
    '../_base_/models/conmim.py',
    '../_base_/datasets/imagenetzip_bs256_conmim.py',
    '../_base_/schedules/conmim_bs2048_300e.py',
    '../_base_/conmim_runtime.py',
]
