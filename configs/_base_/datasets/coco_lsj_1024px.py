# COCO 2017 with large-scale jitter: photos are made 0.1 to 2 times as long as
# 1024 and cut to 1024x1024. What is smaller is filled up, in training and test
# alike, by model.data_preprocessor.
# As bitmaps, masks may be polygons or run lengths in the annotations.
_base_ = './dense_loaders.py'

train_pipeline = [
    dict(type='ropim_mm.LoadImage', on_error='raise'),
    dict(
        type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=True
    ),
    dict(
        type='RandomResize',
        scale=(1024, 1024),
        ratio_range=(0.1, 2.0),
        keep_ratio=True,
    ),
    dict(
        type='RandomCrop',
        crop_type='absolute',
        crop_size=(1024, 1024),
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
# Annotations are in the pictures of --show-dir only; the metric reads its own.
test_pipeline = [
    dict(type='ropim_mm.LoadImage', on_error='raise'),
    dict(type='Resize', scale=(1024, 1024), keep_ratio=True),
    dict(
        type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=True
    ),
    dict(
        type='PackDetInputs',
        meta_keys=(
            'img_id',
            'img_path',
            'ori_shape',
            'img_shape',
            'scale_factor',
        ),
    ),
]

train_dataloader = dict(
    batch_size=4,
    num_workers=8,
    dataset=dict(
        type='CocoDataset',
        data_root='data/coco/',
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        type='CocoDataset',
        data_root='data/coco/',
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type='CocoMetric',
    ann_file='data/coco/annotations/instances_val2017.json',
    metric=['bbox', 'segm'],
)
test_evaluator = val_evaluator
