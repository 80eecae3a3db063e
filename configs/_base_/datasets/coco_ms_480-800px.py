# COCO 2017 at many scales: the short side 480 to 800 pixels, the long one 1333
# at most. Half of the time a piece of 384 to 600 pixels a side is cut out of
# a smaller version first.
_base_ = './coco_lsj_1024px.py'

scales = [
    (480, 1333),
    (512, 1333),
    (544, 1333),
    (576, 1333),
    (608, 1333),
    (640, 1333),
    (672, 1333),
    (704, 1333),
    (736, 1333),
    (768, 1333),
    (800, 1333),
]
resize = dict(type='RandomChoiceResize', scales=scales, keep_ratio=True)
shrink = dict(
    type='RandomChoiceResize',
    scales=[(400, 1333), (500, 1333), (600, 1333)],
    keep_ratio=True,
)
crop = dict(
    type='RandomCrop',
    crop_type='absolute_range',
    crop_size=(384, 600),
    recompute_bbox=True,
    allow_negative_crop=True,
)
train_pipeline = [
    dict(type='ropim_mm.LoadImage', on_error='raise'),
    dict(
        type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=True
    ),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomChoice', transforms=[[resize], [shrink, crop, resize]]),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2)),
    dict(type='PackDetInputs'),
]
# Annotations are in the pictures of --show-dir only; the metric reads its own.
test_pipeline = [
    dict(type='ropim_mm.LoadImage', on_error='raise'),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
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

# Landscapes with landscapes: less padding. The batch sampler, not the loader,
# then says what happens to a last incomplete batch.
train_dataloader = dict(
    drop_last=False,
    batch_sampler=dict(type='AspectRatioBatchSampler', drop_last=True),
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
