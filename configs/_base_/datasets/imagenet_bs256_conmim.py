# All images under `train`, at any depth; folder names are not read. Two views
# of one crop: as it is for the student, in other colours for its copy.
data_preprocessor = dict(
    type='SelfSupDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)

train_pipeline = [
    dict(type='ropim_mm.LoadImage', on_error='raise', defer=True),
    dict(
        type='ropim_mm.RandomResizedCrop',
        scale=224,
        crop_ratio_range=(0.08, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        backend='torch',
        interpolation='bicubic',
    ),
    # Crops are drawn alike to both sides: flipping before would not differ.
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='ropim_mm.TwoViews',
        strong=[
            dict(
                type='RandomApply',
                transforms=[
                    dict(
                        type='ColorJitter',
                        brightness=0.4,
                        contrast=0.4,
                        saturation=0.2,
                        hue=0.1,
                    )
                ],
                prob=0.8,
            ),
            # Blue, green, red.
            dict(
                type='RandomGrayscale',
                prob=0.2,
                keep_channels=True,
                channel_weights=(0.114, 0.587, 0.299),
            ),
            # A radius anywhere in the range.
            dict(
                type='GaussianBlur',
                magnitude_range=(0.1, 2.0),
                magnitude_std='inf',
                prob=0.1,
            ),
            dict(type='Solarize', thr=128, prob=0.2),
        ],
    ),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=256,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root='data/imagenet/',
        data_prefix='train',
        with_label=False,
        pipeline=train_pipeline,
    ),
)
