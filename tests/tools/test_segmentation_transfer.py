"""From a pretraining to ADE20K by command lines, for each method."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from config_checks import CONFIGS
from ropim_mm.engine import launch
from ropim_mm.errors import InputError
from tiny_models import METHODS, config_text
from tiny_models import build as build_pretraining
from tiny_segmentation import ARCH, PATCH, shrink, write_ade

pytestmark = pytest.mark.slow

NAME = '{}/benchmarks/vit-base-p16_upernet_8xb2-amp-160k_ade20k-512x512.py'


@pytest.fixture(scope='module')
def ade(tmp_path_factory):
    root = tmp_path_factory.mktemp('ade')
    write_ade(root)
    return root


def tiny_config(method, ade, path, checkpoint=''):
    """A config of eight updates in which nothing but their order is random.

    Iteration-based runs that are resumed draw new random numbers.
    """
    cfg = launch.load_config(str(CONFIGS / NAME.format(method)))
    shrink(cfg, ade)
    model = cfg.model
    model.backbone.init_cfg.checkpoint = str(checkpoint)
    model.backbone.drop_path_rate = 0.0
    model.decode_head.dropout_ratio = 0.0
    model.auxiliary_head.dropout_ratio = 0.0
    pipeline = cfg.train_dataloader.dataset.pipeline
    cfg.train_dataloader.dataset.pipeline = [
        *pipeline[:2],
        dict(type='Resize', scale=(64, 64), keep_ratio=False),
        pipeline[-1],
    ]
    warmup, poly = cfg.param_scheduler
    warmup.update(start_factor=0.1, end=3)
    poly.update(begin=3, end=8)
    cfg.optim_wrapper.optimizer.lr = 0.01
    cfg.train_cfg.update(max_iters=8, val_interval=8)
    cfg.default_hooks.checkpoint.interval = 4
    cfg.dump(path)
    return path


@pytest.fixture(scope='module', params=METHODS)
def trained(request, call, images, ade, tmp_path_factory):
    """A method, its config, and the folder of its run in two parts."""
    method = request.param
    folder = tmp_path_factory.mktemp(method)
    pretrain = folder / 'pretrain.py'
    pretrain.write_text(
        config_text(method, images, 48, patch_size=PATCH, arch=ARCH)
    )
    call('train.py', pretrain, '--work-dir', folder / 'pretrain')
    checkpoint = folder / 'pretrain/epoch_1.pth'
    config = tiny_config(method, ade, folder / 'transfer.py', checkpoint)

    work_dir = folder / 'work'
    args = ('train.py', config, '--work-dir', work_dir, '--resume')
    first = call(*args, '--cfg-options', 'train_cfg.max_iters=4')
    assert 'starting from the beginning' in first
    # The report on the weights, and the table of rates.
    assert f'{checkpoint}' in first
    assert 'Parameter groups of EncoderDecoder, lr 0.01' in first
    checkpoint.unlink()  # a run that is resumed has its weights
    second = call(*args)
    assert f'Resuming from {work_dir}/iter_4.pth' in second
    return method, config, work_dir


def test_the_resumed_run_goes_on(trained, history):
    method, _, work_dir = trained
    losses = history(work_dir, 'loss')
    assert list(losses) == list(range(1, 9))
    assert np.isfinite(list(losses.values())).all()
    rates = history(work_dir, 'base_lr')
    decay = 0.9 if method in ('ropim', 'conmim') else 0.65
    assert history(work_dir, 'lr') == pytest.approx(
        {k: v * decay**5 for k, v in rates.items()}, rel=1e-4
    )
    state = torch.load(work_dir / 'iter_8.pth', weights_only=False)
    assert state['meta']['iter'] == 8
    assert len(state['param_schedulers']) == 2
    assert history(work_dir, 'mIoU')[8] >= 0
    assert list(work_dir.glob('best_mIoU_iter_*.pth'))


def test_as_if_it_had_not_stopped(call, history, ade, tmp_path):
    """From random weights, which the seed of the config makes equal."""
    config = tiny_config('ropim', ade, tmp_path / 'config.py')
    losses = {}
    for name, stops in (('whole', [8]), ('parts', [4, 8])):
        for stop in stops:
            call(
                'train.py',
                config,
                '--work-dir',
                tmp_path / name,
                '--resume',
                '--cfg-options',
                f'train_cfg.max_iters={stop}',
                'model.backbone.init_cfg=None',
            )
        losses[name] = history(tmp_path / name, 'loss')
    assert list(losses['whole']) == list(range(1, 9))
    assert losses['parts'] == losses['whole']


def check_pictures(folder, ade):
    """One a photo: the labels and the prediction, each over the photo."""
    pictures = sorted(folder.rglob('*.png'))
    photos = sorted((ade / 'images/validation').iterdir())
    assert len(pictures) == len(photos) == 4
    for path, photo in zip(pictures, photos, strict=True):
        picture = np.asarray(Image.open(path)).astype(float)
        width, height = Image.open(photo).size
        assert picture.shape == (height, 2 * width, 3)
        pixels = np.asarray(Image.open(photo)).astype(float)
        for half in (picture[:, :width], picture[:, width:]):
            assert half.std() > 10
            assert np.abs(half - pixels).mean() > 10


def test_slide_whole_and_several_scales(trained, call, history, ade, tmp_path):
    method, config, work_dir = trained
    options = {
        'slide': [],
        'whole': ['--cfg-options', 'model.test_cfg.mode=whole'],
        'tta': ['--tta'],
    }
    # What the run itself evaluated, window by window.
    names = ('aAcc', 'mIoU', 'mAcc')
    metrics = {'val': tuple(history(work_dir, n)[8] for n in names)}
    if method != 'ropim':  # what is tested here is not the encoder
        options = {'whole': options['whole']}
    for mode, option in options.items():
        out = tmp_path / f'{mode}.json'
        pictures = tmp_path / f'{mode}-pictures'
        call(
            'test.py',
            config,
            work_dir / 'iter_8.pth',
            '--work-dir',
            tmp_path / mode,
            '--out',
            out,
            '--show-dir',
            pictures,
            *option,
        )
        found = json.loads(out.read_text())
        metrics[mode] = tuple(found[n] for n in names)
        check_pictures(pictures, ade)
    slide = metrics.pop('slide', metrics['val'])
    assert slide == metrics['val']
    # Different ways to look at photos larger than the crop.
    assert len(set(metrics.values())) == len(metrics)


def test_two_processes(call, ade, history, tmp_path):
    config = tiny_config('rmae', ade, tmp_path / 'config.py')
    work_dir = tmp_path / 'work'
    output = call(
        'dist_train.sh',
        config,
        2,
        '--work-dir',
        work_dir,
        '--cfg-options',
        'model.backbone.init_cfg=None',
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
    )
    assert '2 process(es)' in output
    assert list(history(work_dir, 'loss')) == [1, 2]
    assert (work_dir / 'iter_2.pth').is_file()


def test_by_mim(ade, mim_train, history, tmp_path):
    """MMSegmentation's own training script takes the configs, too."""
    mim_train(
        'mmsegmentation',
        tiny_config('lomar', ade, tmp_path / 'config.py'),
        tmp_path / 'work',
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        'model.backbone.init_cfg=None',
    )
    assert list(history(tmp_path / 'work', 'loss')) == [1, 2]


# --- bad input --------------------------------------------------------------


def fails(cfg, work_dir) -> str:
    """The message of a run that must not begin."""
    with pytest.raises(InputError) as caught:
        notes = launch.prepare_train(cfg, work_dir=str(work_dir))
        launch.train(cfg, notes)
    assert not list(work_dir.rglob('*.pth'))
    return str(caught.value)


@pytest.fixture
def cfg(ade, tmp_path):
    path = tiny_config('ropim', ade, tmp_path / 'config.py')
    return launch.load_config(str(path))


def save(path, method, **options):
    model = build_pretraining(method, img_size=48, patch_size=16, **options)
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


def test_missing_folders_are_named(cfg, ade, tmp_path, call):
    config = CONFIGS / NAME.format('rmae')
    output = call('train.py', config, status=1, cwd=tmp_path)
    assert (
        'error: train_dataloader.dataset.data_root: '
        'data/ade/ADEChallengeData2016 not found' in output
    )
    assert '--cfg-options train_dataloader.dataset.data_root=PATH' in output
    assert 'Traceback' not in output

    prefix = cfg.train_dataloader.dataset.data_prefix
    prefix.seg_map_path = 'annotations/none'
    message = fails(cfg, tmp_path / 'work')
    assert (
        'train_dataloader.dataset.data_prefix.seg_map_path: '
        f'{ade}/annotations/none not found' in message
    )


def test_a_checkpoint_of_another_method(cfg, tmp_path):
    checkpoint = save(tmp_path / 'lomar.pth', 'lomar', arch=ARCH)
    cfg.model.backbone.init_cfg.checkpoint = str(checkpoint)
    message = fails(cfg, tmp_path / 'work')
    assert str(checkpoint) in message
    for i in range(4):
        assert f'layers.{i}.attn.relative_position_bias_table' in message
        assert f'layers.{i}.attn.rpe_k.lookup_table_weight' in message
    assert 'is it of another method?' in message


def test_a_checkpoint_of_another_size(cfg, tmp_path):
    arch = dict(ARCH, feedforward_channels=48)
    checkpoint = save(tmp_path / 'wide.pth', 'ropim', arch=arch)
    cfg.model.backbone.init_cfg.checkpoint = str(checkpoint)
    message = fails(cfg, tmp_path / 'work')
    assert 'layers.3.ffn.layers.1.weight' in message
    assert '(16, 48)' in message
    assert '(16, 32)' in message

    arch = dict(ARCH, num_layers=2)
    checkpoint = save(tmp_path / 'short.pth', 'ropim', arch=arch)
    cfg.model.backbone.init_cfg.checkpoint = str(checkpoint)
    message = fails(cfg, tmp_path / 'work')
    assert 'layers.2.attn.qkv.weight' in message
    assert 'layers.1.attn.qkv.weight' not in message


def test_blocks_beyond_the_last(cfg, tmp_path):
    cfg.model.backbone.update(out_indices=(3, 5, 7, 11), init_cfg=None)
    message = fails(cfg, tmp_path / 'work')
    assert 'out_indices holds 5; this encoder has 4 blocks' in message
    assert 'expected -4 to 3' in message


@pytest.mark.parametrize('trained', ['rmae'], indirect=True)
def test_a_segmentor_of_another_method(trained, call, ade, tmp_path):
    _, _, work_dir = trained
    config = tiny_config('ropim', ade, tmp_path / 'ropim.py')
    output = call(
        'test.py',
        config,
        work_dir / 'iter_8.pth',
        '--work-dir',
        tmp_path / 'work',
        status=1,
    )
    assert 'Traceback' not in output
    assert 'backbone.layers.0.gamma_1' in output
    assert 'must fit the whole model' in output
