# The archive: --cfg-options {train,val,test}_dataloader.dataset.zip_file=FILE
_base_ = [
    '../../_base_/models/conmim_classifier.py',
    '../../_base_/datasets/imagenetzip_bs128_conmim_finetune.py',
    '../../_base_/schedules/conmim_finetune_bs1024_100e.py',
    '../../_base_/finetune_runtime.py',
]
