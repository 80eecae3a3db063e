# ImageNet in one zip archive, read in place. `train_map.txt`, in the archive
# or beside it, has a path in the archive and a label a line.
_base_ = './imagenet_bs256_conmim.py'

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ropim_mm.ImageZipMap',
        zip_file='data/imagenet.zip',
        map_file='train_map.txt',
        with_label=False,
        pipeline=_base_.train_pipeline,
    )
)
