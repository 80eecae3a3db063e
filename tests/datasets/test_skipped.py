"""SkipAccount and SkippedImagesHook: all workers count, one process tells."""

import copy
from types import SimpleNamespace

import pytest
from mmengine.dataset import ConcatDataset, pseudo_collate
from mmpretrain.datasets import CustomDataset
from PIL import Image
from torch.utils.data import DataLoader

from ropim_mm.datasets import skipped
from ropim_mm.datasets.skipped import SkipAccount
from ropim_mm.engine.skipped import find_accounts
from ropim_mm.registry import HOOKS


def build(folder, broken=('empty.jpg', 'text.png'), whole=4):
    folder.mkdir()
    for i in range(whole):
        Image.new('RGB', (8, 8), (i, i, i)).save(folder / f'{i}.png')
    for name in broken:
        (folder / name).write_bytes(b'no image'[: 8 * name.startswith('t')])
    return CustomDataset(
        data_root=str(folder),
        with_label=False,
        pipeline=[
            dict(type='ropim_mm.LoadImage', on_error='skip'),
            dict(type='PackInputs'),
        ],
    )


def report(dataset, method='after_train_epoch'):
    """The lines that the hook writes in the main process."""
    lines = []
    runner = SimpleNamespace(
        train_dataloader=SimpleNamespace(dataset=dataset),
        epoch=0,
        logger=SimpleNamespace(
            info=lambda line: lines.append(('info', line)),
            warning=lambda line: lines.append(('warning', line)),
        ),
    )
    hook = HOOKS.build(dict(type='ropim_mm.SkippedImagesHook'))
    getattr(hook, method)(runner)
    return lines


def count(dataset):
    (account,) = find_accounts(dataset)
    return account.read()


@pytest.mark.parametrize(
    'context', ['fork', pytest.param('spawn', marks=pytest.mark.slow)]
)
@pytest.mark.parametrize('persistent', [True, False])
def test_workers_count_reads_and_files(tmp_path, context, persistent):
    dataset = build(tmp_path / 'images')
    loader = DataLoader(
        dataset,
        batch_size=1,
        num_workers=2,
        collate_fn=pseudo_collate,
        multiprocessing_context=context,
        persistent_workers=persistent,
    )
    reads = []
    for _ in range(2):  # epochs; both workers meet a broken file
        assert len(list(loader)) == 6
        found = count(dataset)
        reads.append(found.reads)
        assert len(found.files) == 2
    assert 2 <= reads[0] <= reads[1] - 2
    ((level, line),) = report(dataset)
    assert level == 'warning'
    assert line.startswith(
        f'By epoch 1, {reads[1]} reads of unreadable images were skipped, of '
        '2 distinct files, e.g. '
    )
    for name, reason in (('empty.jpg', 'is empty'), ('text.png', 'not an im')):
        assert line.count(name) == 1
        assert f'{name}: ' in line and reason in line


def test_nothing_skipped_is_said_at_the_end_only(tmp_path):
    dataset = build(tmp_path / 'images', broken=())
    assert dataset[0] is not None
    assert report(dataset) == []
    assert report(dataset, 'after_train') == [
        ('info', 'In this run, no image was skipped.')
    ]


def test_wrapped_datasets_and_several_processes_are_summed(
    tmp_path, monkeypatch
):
    parts = [build(tmp_path / name) for name in 'ab']
    whole = ConcatDataset(parts)
    for i in range(12):
        assert whole[i] is not None
    reads = sum(count(part).reads for part in parts)
    monkeypatch.setattr(
        'ropim_mm.engine.skipped.all_gather_object',
        lambda mine: [mine, (3, frozenset({7}), ('c: gone',), True)],
    )
    ((_, line),) = report(whole, 'after_train')
    assert f'{reads + 3} reads' in line and 'of 5 distinct files' in line
    assert line.count('; ') == 2  # three examples


def test_what_does_not_fit_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(skipped, '_FILES', 3)
    monkeypatch.setattr(skipped, '_BYTES', 16)
    account = SkipAccount()
    new = [account.add(f'{i}.png', f'{i}.png: {"ä" * 20}') for i in range(4)]
    assert new == [True, True, True, False]
    found = account.read()
    assert (found.reads, len(found.files), found.complete) == (4, 3, False)
    # Cut at 16 bytes, within the fifth character of two.
    assert found.examples[0] == '0.png: ääää\ufffd'
    holder = SimpleNamespace(skipped=account)
    assert 'of at least 3 distinct files' in report(holder)[0][1]


def test_a_copy_keeps_an_account_of_its_own(tmp_path):
    dataset = build(tmp_path / 'images')
    twin = copy.deepcopy(dataset)
    loader = DataLoader(twin, 1, num_workers=1, collate_fn=pseudo_collate)
    assert len(list(loader)) == 6
    assert count(twin).reads >= 2
    assert count(dataset).reads == 0


def test_a_name_that_is_no_text_is_counted():
    account = SkipAccount()
    assert account.add('\udcff.png', '\udcff.png: empty')  # byte 0xFF
    assert account.read().examples == ('?.png: empty',)
