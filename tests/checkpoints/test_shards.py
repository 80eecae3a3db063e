"""Parts of a checkpoint, put together."""

import os
import re

import pytest
import torch

from ropim_mm.checkpoints.coverage import find_state_dict
from ropim_mm.checkpoints.reading import (
    CheckpointError,
    MissingCheckpointError,
    UntrustedCheckpointError,
    read_checkpoint,
)
from ropim_mm.checkpoints.shards import is_sharded, merge_shards, read_shards

# Three processes share 5 rows as PyTorch cuts them: 2, 2, 1; a token has one
# row, so two of them have none.
WEIGHT = torch.arange(10.0).view(5, 2)
TOKEN = torch.full((1, 1, 2), 7.0)
CUTS = (slice(0, 2), slice(2, 4), slice(4, 5))


def part(rank, processes=3, step=8):
    rows = CUTS[rank]
    weight = (WEIGHT[rows].clone(), [5, 2])
    token = (TOKEN[rows].clone(), [1, 1, 2])
    return dict(
        rank=rank,
        world_size=processes,
        iter=step,
        state_dict={'a.weight': weight, 'a.token': token},
        optimizer={0: dict(exp_avg=(-WEIGHT[rows], [5, 2]))},
    )


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / 'epoch_2.pth'
    path.mkdir()
    for rank in range(3):
        content = dict(shards=part(rank))
        if rank == 0:
            content.update(
                meta=dict(epoch=2, iter=8),
                state_dict={
                    'a.token': None,
                    'a.mean': torch.ones(2),
                    'a.weight': None,
                },
                optimizer=dict(
                    state={0: dict(step=torch.tensor(8.0), exp_avg=None)},
                    param_groups=[dict(lr=0.1, params=[0])],
                ),
            )
        torch.save(content, path / f'rank{rank}.pth')
    return path


def change(folder, rank, function):
    path = folder / f'rank{rank}.pth'
    content = torch.load(path, weights_only=False)
    function(content)
    torch.save(content, path)


def test_put_together(folder):
    assert is_sharded(folder)
    found = read_shards(folder)
    assert list(found) == ['meta', 'state_dict', 'optimizer']
    assert list(found['state_dict']) == ['a.token', 'a.mean', 'a.weight']
    assert torch.equal(found['state_dict']['a.weight'], WEIGHT)
    assert torch.equal(found['state_dict']['a.token'], TOKEN)
    assert torch.equal(found['state_dict']['a.mean'], torch.ones(2))
    state = found['optimizer']['state'][0]
    assert torch.equal(state['exp_avg'], -WEIGHT)
    assert state['step'] == 8


def test_merged_file(folder, tmp_path):
    dst = tmp_path / 'new' / 'plain.pth'
    line = merge_shards(folder, dst)
    assert line == f'{dst}: 3 tensors, 14 numbers, from 3 parts'
    content = torch.load(dst, weights_only=True)
    assert torch.equal(content['state_dict']['a.weight'], WEIGHT)
    with pytest.raises(CheckpointError, match='plain.pth exists already'):
        merge_shards(folder, dst)
    line = merge_shards(folder, dst, optimizer=False, force=True)
    assert line.endswith('from 3 parts, without the optimizer')
    assert 'optimizer' not in torch.load(dst, weights_only=True)


def test_a_missing_part(folder, tmp_path):
    (folder / 'rank2.pth').unlink()
    with pytest.raises(MissingCheckpointError, match=r'rank2\.pth'):
        merge_shards(folder, tmp_path / 'plain.pth')
    assert not (tmp_path / 'plain.pth').exists()


@pytest.mark.parametrize(
    'wrong, message',
    [
        (
            lambda c: c['shards'].update(iter=4),
            'rank1.pth: iter is 4, but 8 in rank0.pth: the files are of '
            'different checkpoints',
        ),
        (
            lambda c: c['shards'].update(rank=2),
            'rank1.pth is the part of process 2: the file was renamed',
        ),
        (
            lambda c: c.pop('shards'),
            "rank1.pth has no entry 'shards' with rank, world_size",
        ),
        (
            lambda c: c['shards']['state_dict'].pop('a.weight'),
            'state_dict.a.weight is missing in rank1.pth',
        ),
        (
            lambda c: c['shards']['state_dict'].update(
                {'a.weight': (WEIGHT[:1], [5, 2])}
            ),
            'state_dict.a.weight has 4 rows in 3 parts; expected 5',
        ),
        (
            lambda c: c['shards']['optimizer'][0].update(
                exp_avg=(torch.ones(2, 3), [5, 3])
            ),
            'optimizer.state.0.exp_avg has rows of shape [2, 3] of [5, 3]',
        ),
    ],
)
def test_parts_that_do_not_fit(folder, wrong, message):
    change(folder, 1, wrong)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_shards(folder)


def test_a_tensor_that_no_part_has(folder):
    for rank in range(3):
        change(folder, rank, lambda c: c['shards']['state_dict'].clear())
    with pytest.raises(CheckpointError, match='no part has a.token, a.weight'):
        read_shards(folder)


def test_what_is_no_sharded_checkpoint(tmp_path):
    (tmp_path / 'file.pth').write_bytes(b'x')
    for name, why in (('file.pth', 'is a file'), ('.', 'has no rank0.pth')):
        with pytest.raises(CheckpointError, match=why):
            merge_shards(tmp_path / name, tmp_path / 'plain.pth')


def test_no_code_is_run(folder, tmp_path):
    class Call:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'made'),)

    torch.save(dict(shards=part(1), extra=Call()), folder / 'rank1.pth')
    with pytest.raises(UntrustedCheckpointError, match='mkdir'):
        read_shards(folder)
    assert not (tmp_path / 'made').exists()


def test_a_part_is_no_checkpoint(folder):
    """Nor is the folder, where a file is asked for: both say what to do."""
    for rank in (0, 1):
        path = folder / f'rank{rank}.pth'
        with pytest.raises(CheckpointError, match='one part of.*merge_shards'):
            find_state_dict(read_checkpoint(path), str(path))
    with pytest.raises(CheckpointError, match='a folder.*merge_shards'):
        read_checkpoint(folder)
