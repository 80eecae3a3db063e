# COCO train2017 and unlabeled2017 (COCO++), each with its label maps of three
# scales, see coco_bs512_rmae.py.
_base_ = './imagenet_bs512_rmae.py'

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[
            dict(
                type='ropim_mm.RegionDataset',
                data_root='data/coco/',
                data_prefix=dict(
                    img_path='train2017', region_path='fh_train2017'
                ),
                with_label=False,
                on_missing='raise',
                pipeline=_base_.train_pipeline,
            ),
            dict(
                type='ropim_mm.RegionDataset',
                data_root='data/coco/',
                data_prefix=dict(
                    img_path='unlabeled2017', region_path='fh_unlabeled2017'
                ),
                with_label=False,
                on_missing='raise',
                pipeline=_base_.train_pipeline,
            ),
        ],
    )
)
