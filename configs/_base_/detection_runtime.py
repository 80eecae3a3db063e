# Runs of MMDetection: a number of updates, validated in between; the weights
# with the best mask AP are kept.
_base_ = './iteration_runtime.py'

default_scope = 'mmdet'

default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(interval=5000, save_best='coco/segm_mAP'),
    visualization=dict(_delete_=True, type='DetVisualizationHook'),
)

visualizer = dict(
    _delete_=True,
    type='DetLocalVisualizer',
    vis_backends=_base_.vis_backends,
)
