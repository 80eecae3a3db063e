# ConMIM's targets come from a copy that follows the student.
_base_ = './default_runtime.py'

custom_hooks = [
    *_base_.custom_hooks,
    # After each step of the optimizer; 0.996 rises to 1 along a cosine.
    dict(type='ropim_mm.MomentumCopyHook', start=0.996, end=1.0),
]
