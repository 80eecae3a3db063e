# What every run shares. `import ropim_mm` makes the types `ropim_mm.X` known.
custom_imports = dict(imports=['ropim_mm'], allow_failed_imports=False)
default_scope = 'mmpretrain'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook', interval=5, max_keep_ckpts=3, save_last=True
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    data_wait=dict(type='ropim_mm.DataWaitHook'),
    visualization=dict(type='VisualizationHook', enable=False),
)
# Stops a run when `load_from`, the checkpoint to resume or the one to test
# leaves a part of the model at random. `init_cfg` is checked by the backbone.
# Lists replace each other: tools/train.py and test.py add the hook to a config
# that sets its own `custom_hooks`.
custom_hooks = [dict(type='ropim_mm.CheckpointCoverageHook')]

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='UniversalVisualizer', vis_backends=vis_backends)
log_level = 'INFO'
load_from = None
resume = False

# Another seed on each process: they must not draw the same crops, sketches
# and mixing partners. Weights are still equal, rank 0's are broadcast.
randomness = dict(seed=0, diff_rank_seed=True)
