# Runs of MMSegmentation: a number of updates, validated in between; the
# weights with the best mIoU are kept.
_base_ = './iteration_runtime.py'

default_scope = 'mmseg'

default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(interval=4000, save_best='mIoU'),
    visualization=dict(_delete_=True, type='SegVisualizationHook'),
)

visualizer = dict(
    _delete_=True,
    type='SegLocalVisualizer',
    vis_backends=_base_.vis_backends,
    # The photo stays visible below the classes.
    alpha=0.5,
)
