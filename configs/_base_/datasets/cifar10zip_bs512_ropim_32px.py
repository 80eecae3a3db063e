# The same from a zip archive with `train/<class>/` and `test/<class>/`, read
# in place.
_base_ = './cifar10_bs512_ropim_32px.py'

data_preprocessor = dict(to_rgb=True)

train_pipeline = [
    dict(type='ropim_mm.LoadImage', on_error='raise'),
    *_base_.train_pipeline,
]

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ropim_mm.ImageZip',
        zip_file='data/cifar10-subset.zip',
        prefix='train',
        with_label=False,
        pipeline=train_pipeline,
    )
)
