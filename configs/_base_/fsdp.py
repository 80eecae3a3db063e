# Splits parameters, gradients and the optimizer's moments over the processes:
# add this file to the `_base_` list of any config, or say
# `--cfg-options strategy=fsdp`. Checkpoints are 'whole' (one plain file) or
# 'sharded' (a folder, a file a process; tools/model_converters/merge_shards.py
# makes it one file). `shard_over=8` splits each of several copies of the model
# over 8 neighbouring processes, such as those of a machine.
strategy = dict(type='fsdp', checkpoints='whole')
