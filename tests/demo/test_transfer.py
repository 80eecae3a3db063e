"""``demo/transfer.py``: small recipes, the plan, and a much shortened run."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny_coco
from tiny_segmentation import write_ade

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def transfer(demo):
    return demo('transfer')


@pytest.fixture(scope='module')
def recipes(demo):
    return demo('small_recipes')


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Twenty of them, in two folders."""
    root = tmp_path_factory.mktemp('photos')
    rng = np.random.default_rng(0)
    for i in range(20):
        folder = root / str(i % 2)
        folder.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        large = Image.fromarray(pixels).resize((240, 180), Image.BICUBIC)
        large.save(folder / f'{i}.jpg')
    return root


@pytest.mark.parametrize('method', ['ropim', 'lomar', 'rmae', 'conmim'])
def test_only_sizes_and_schedules_are_other_ones(recipes, tmp_path, method):
    """Losses, augmentation, metrics and their order are the recipe's."""
    count = 5
    for task, arguments in (
        ('pretraining', (tmp_path, tmp_path / 'maps', 20)),
        ('segmentation', (tmp_path, count, 100)),
        ('detection', (tmp_path, tmp_path / 'a.json', 100)),
    ):
        published = recipes.recipe(method, task)
        small = getattr(recipes, task)(method, *arguments)
        assert small.model.type == published.model.type
        assert small.model.backbone.type == published.model.backbone.type
        assert small.model.backbone.arch == recipes.ARCH
        one, other = (
            [step.type for step in cfg.train_dataloader.dataset.pipeline]
            for cfg in (small, published)
        )
        assert one == other
        assert small.optim_wrapper.optimizer.type == 'AdamW'
        assert small.optim_wrapper.dtype == 'float32'
        kept = 'head' if task == 'pretraining' else 'val_evaluator'
        source = dict(published.get(kept) or published.model[kept])
        if task == 'detection':
            source['ann_file'] = str(tmp_path / 'a.json')
        result = small.model.head if kept == 'head' else small.val_evaluator
        assert dict(result) == source
        # A run that is stopped and resumed has the same schedule.
        ends = [s['end'] for s in small.param_scheduler]
        assert ends[-1] == (20 if task == 'pretraining' else 100)
    assert small.model.backbone.window_size * 16 == recipes.SIDE


def test_both_arms_differ_by_their_start_only(transfer, photos):
    args = transfer.parse_args(
        [str(photos), '--ade', 'a', '--methods', 'lomar', 'rmae']
    )
    jobs = {job.name: job for job in transfer.plan(args, ['segmentation'])}
    assert list(jobs) == [
        'lomar-pretraining',
        'rmae-pretraining',
        'lomar-segmentation-pretrained',
        'lomar-segmentation-random',
        'rmae-segmentation-pretrained',
        'rmae-segmentation-random',
    ]
    assert len(jobs['rmae-pretraining'].commands) == 2  # region maps first
    pretrained = jobs['lomar-segmentation-pretrained']
    (scratch,) = jobs['lomar-segmentation-random'].commands
    half, rest, test = pretrained.commands
    assert half[-1] == 'train_cfg.max_iters=200' and '--resume' in rest
    assert test[3] == 'lomar-segmentation-pretrained/iter_400.pth'
    init = 'model.backbone.init_cfg'
    assert scratch[-1] == f'{init}=None'
    weights = f'{init}.checkpoint=lomar-pretraining/epoch_60.pth'
    assert rest[-1] == weights and weights in half
    assert pretrained.after == ('lomar-pretraining',)
    assert scratch[:3] == half[:3]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], 'give --ade DIR, --coco DIR, or both'),
        (['--ade', 'a', '--epochs', '3'], '--epochs is 3; expected 4 or more'),
        (
            ['--ade', 'a', '--iterations', '19'],
            '--iterations is 19; expected 20 or more',
        ),
    ],
)
def test_wrong_options(transfer, capsys, arguments, message):
    with pytest.raises(SystemExit):
        transfer.parse_args(['photos', *arguments])
    assert message in capsys.readouterr().err


def test_folders_that_lack_something(transfer, photos, tmp_path):
    few = tmp_path / 'few'
    few.mkdir()
    Image.new('RGB', (20, 20)).save(few / 'a.png')
    for number, (folder, ade, message) in enumerate(
        (
            (tmp_path / 'none', tmp_path, 'none does not exist'),
            (few, tmp_path, 'few holds 1 photos; expected 20 or more'),
            (photos, tmp_path, r'images.validation does not exist'),
        )
    ):
        args = transfer.parse_args([str(folder), '--ade', str(ade)])
        args.work_dir = work_dir = tmp_path / f'work{number}'
        transfer.clear(work_dir)
        transfer.own(work_dir, 'results.md')
        (work_dir / 'results.md').write_text('old')
        with pytest.raises(transfer.DemoError, match=message):
            transfer.run(args)
        assert (work_dir / 'results.md').read_text() == 'old'


def test_an_unreadable_photo_is_named(transfer, photos, tmp_path):
    work_dir = tmp_path / 'work'
    work_dir.mkdir()
    (tmp_path / 'bad.jpg').write_bytes(b'broken')
    args = transfer.parse_args([str(photos), '--ade', str(tmp_path)])
    args.work_dir = work_dir
    with pytest.raises(transfer.DemoError, match=r'cannot read .*bad\.jpg: '):
        transfer.prepare(args, [tmp_path / 'bad.jpg'])


def test_part_of_a_coco_file(recipes, tmp_path):
    source, target = tmp_path / 'a.json', tmp_path / 'b.json'
    content = dict(
        images=[dict(id=7), dict(id=3), dict(id=5)],
        annotations=[dict(id=i, image_id=k) for i, k in enumerate((5, 7, 3))],
        categories=[dict(id=1)],
    )
    source.write_text(json.dumps(content))
    assert recipes.first_photos(source, 2, target) == 2
    part = json.loads(target.read_text())
    assert [image['id'] for image in part['images']] == [7, 3]
    assert [entry['id'] for entry in part['annotations']] == [1, 2]
    assert part['categories'] == content['categories']
    assert recipes.first_photos(source, 9, target) == 3


def run_transfer(tmp_path, *arguments):
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / 'demo/transfer.py'), *arguments),
            *('--work-dir', 'the work', '--epochs', '4'),
            *('--iterations', '20'),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, tmp_path / 'the work'


@pytest.mark.slow
def test_short_run_of_segmentation(photos, tmp_path):
    """R-MAE's, which needs region maps."""
    write_ade(tmp_path / 'ade')
    out, work = run_transfer(
        tmp_path, str(photos), '--ade', 'ade', '--methods', 'rmae'
    )
    results = json.loads((work / 'results.json').read_text())
    arms = results['segmentation']['rmae']
    for arm in ('pretrained', 'random'):
        assert 0 <= arms[arm]['mIoU'] <= 100
        assert arms[arm]['last_loss'] < arms[arm]['first_loss']
    assert (work / 'results.md').read_text() in out
    assert len(list((work / 'maps').rglob('*.png'))) == 20
    log = (work / 'logs/rmae-segmentation-pretrained.log').read_text()
    assert 'rmae-pretraining/epoch_4.pth: matched' in log
    assert 'resumed epoch: 0, iter: 10' in log
    pictures = list((work / 'pictures/rmae-segmentation').rglob('*.png'))
    assert len(pictures) == 3


@tiny_coco.needs_operators
@pytest.mark.slow
def test_short_run_of_detection(photos, tmp_path):
    tiny_coco.write(tmp_path / 'coco')
    _, work = run_transfer(
        tmp_path, str(photos), '--coco', 'coco', '--methods', 'conmim'
    )
    results = json.loads((work / 'results.json').read_text())
    arms = results['detection']['conmim']
    for arm in ('pretrained', 'random'):
        assert 0 <= arms[arm]['mask AP'] <= 100
        assert arms[arm]['last_loss'] < arms[arm]['first_loss']
    assert list((work / 'pictures/conmim-detection').rglob('*.*'))
