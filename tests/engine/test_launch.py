"""From a config file and options to a run."""

import os

import pytest
from mmengine.config import Config
from torch.utils.data import DataLoader, Dataset

from ropim_mm.checkpoints.reading import TRUST_VARIABLE
from ropim_mm.engine import launch
from ropim_mm.engine.distributed import LaunchError
from ropim_mm.errors import InputError
from ropim_mm.stack import StackError

TRAINING = """
default_scope = 'mmpretrain'
model = dict(type='ropim_mm.ROPIM', backbone=dict(
    init_cfg=dict(type='Pretrained', checkpoint='vit.pth')))
train_dataloader = dict(batch_size=8, num_workers=0, dataset=dict(
    type='CustomDataset', data_root={root!r}, data_prefix='train'))
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(
    type='OptimWrapper', accumulative_counts=2, clip_grad=dict(max_norm=5.0),
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, end=1),
    dict(type='CosineAnnealingLR', eta_min=1e-5),
    dict(type='CosineAnnealingMomentum', eta_min=0.5)]
"""


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    """A loaded training config with its data in place."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data/train').mkdir(parents=True)
    path = tmp_path / 'tiny.py'
    path.write_text(TRAINING.format(root='data'))
    return launch.load_config(str(path))


class TestLoadConfig:
    def test_missing_file(self, tmp_path):
        path = str(tmp_path / 'none.py')
        with pytest.raises(LaunchError, match=f'config file {path} not found'):
            launch.load_config(path)

    def test_missing_base(self, tmp_path):
        path = tmp_path / 'a.py'
        path.write_text("_base_ = './missing_base.py'")
        with pytest.raises(LaunchError, match='missing_base.py'):
            launch.load_config(str(path))

    def test_option_that_does_not_fit(self, cfg):
        with pytest.raises(LaunchError, match='--cfg-options does not fit'):
            launch.load_config(cfg.filename, {'param_scheduler.9.end': 2})

    def test_options_and_default_scope(self, tmp_path):
        path = tmp_path / 'a.py'
        path.write_text('a = dict(b=1)')
        cfg = launch.load_config(str(path), {'a.b': 2, 'a.c': 3})
        assert cfg.a == dict(b=2, c=3)
        assert cfg.default_scope == 'mmpretrain'

    def test_detection_is_checked_first(self, tmp_path, monkeypatch):
        def refuse():
            raise StackError('compiled operators')

        monkeypatch.setattr(launch.stack, 'require_detection', refuse)
        path = tmp_path / 'a.py'
        path.write_text("default_scope = 'mmdet'")
        with pytest.raises(StackError, match='compiled operators'):
            launch.load_config(str(path))


class TestPrepareTrain:
    def test_plain(self, cfg):
        assert launch.prepare_train(cfg, launcher='pytorch') == []
        assert cfg.work_dir == os.path.join('work_dirs', 'tiny')
        assert cfg.launcher == 'pytorch'
        assert cfg.train_dataloader.collate_fn.type == 'default_collate'
        assert cfg.optim_wrapper.type == 'OptimWrapper'

    def test_work_dir(self, cfg):
        cfg.work_dir = 'of_the_config'
        launch.prepare_train(cfg)
        assert cfg.work_dir == 'of_the_config'
        launch.prepare_train(cfg, work_dir='of_the_user')
        assert cfg.work_dir == 'of_the_user'

    @pytest.mark.parametrize('scope', ['mmseg', 'mmdet'])
    def test_collate_of_other_frameworks(self, cfg, scope):
        cfg.default_scope = scope
        launch._set_collate(cfg)
        assert 'collate_fn' not in cfg.train_dataloader

    def test_amp_keeps_the_other_fields(self, cfg):
        launch.prepare_train(cfg, amp=True)
        wrapper = cfg.optim_wrapper
        assert wrapper.type == 'ropim_mm.AutocastOptimWrapper'
        assert wrapper.dtype == 'bfloat16'
        assert wrapper.clip_grad == dict(max_norm=5.0)
        assert wrapper.accumulative_counts == 2
        wrapper.dtype = 'float16'
        launch.use_autocast(cfg)
        assert wrapper.dtype == 'float16'

    def test_no_validate(self, cfg):
        cfg.val_cfg = cfg.val_evaluator = dict()
        cfg.val_dataloader = dict(dataset=dict(data_root='nowhere'))
        with pytest.raises(LaunchError, match='val_dataloader.dataset.data_r'):
            launch.prepare_train(cfg)
        launch.prepare_train(cfg, validate=False)
        assert cfg.val_cfg is cfg.val_dataloader is cfg.val_evaluator is None

    def test_field_missing(self, cfg):
        cfg.pop('optim_wrapper')
        with pytest.raises(LaunchError, match='has no optim_wrapper: it'):
            launch.prepare_train(cfg)

    def test_weights_are_checked(self, cfg):
        kind = 'ropim_mm.CheckpointCoverageHook'
        cfg.custom_hooks = [dict(type='EMAHook')]
        for _ in range(2):
            launch.prepare_train(cfg)
            assert cfg.custom_hooks == [dict(type='EMAHook'), dict(type=kind)]
        cfg.custom_hooks = [dict(type=kind, allow_missing=['head.'])]
        launch.prepare_train(cfg)
        assert cfg.custom_hooks == [dict(type=kind, allow_missing=['head.'])]

    def test_other_models_are_not_checked(self, cfg):
        # They may want to load a detector with another number of classes.
        cfg.model = dict(type='ImageClassifier', backbone=dict(type='ViT'))
        launch.prepare_train(cfg)
        assert 'custom_hooks' not in cfg

    def test_pretrained_that_is_not_checked(self, cfg, tmp_path):
        cfg.model.backbone.type = 'ropim_mm.ROPIMViT'
        launch.prepare_train(cfg)
        cfg.model.init_cfg = dict(type='Pretrained', checkpoint='vit.pth')
        with pytest.raises(
            LaunchError,
            match='^model.init_cfg of .*tiny.py would .* load_from=FILE$',
        ):
            launch.prepare_train(cfg)
        (tmp_path / 'a.pth').touch()
        launch.prepare_train(cfg, resume='a.pth')  # nothing is read

    def test_pretrained_of_other_models(self, cfg):
        cfg.model = dict(
            type='ImageClassifier',
            backbone=dict(type='VisionTransformer'),
            init_cfg=dict(type='Pretrained', checkpoint='vit.pth'),
        )
        launch.prepare_train(cfg)

    def test_trust(self, cfg, monkeypatch):
        monkeypatch.delenv(TRUST_VARIABLE, raising=False)
        launch.prepare_train(cfg)
        assert TRUST_VARIABLE not in os.environ
        launch.prepare_train(cfg, trust=True)
        assert os.environ[TRUST_VARIABLE] == os.path.realpath('vit.pth')
        monkeypatch.delenv(TRUST_VARIABLE)


class TestScaleLearningRate:
    def test_absolute_rates_of_all_processes(self, cfg):
        cfg.auto_scale_lr = dict(base_batch_size=256)
        note = launch.scale_learning_rate(cfg, 8)
        # 8 images * 2 steps accumulated * 8 processes = 128
        assert cfg.optim_wrapper.optimizer.lr == pytest.approx(5e-4)
        first, second, third = cfg.param_scheduler
        assert first.start_factor == 0.1
        assert second.eta_min == pytest.approx(5e-6)
        assert third.eta_min == 0.5  # not a rate
        assert '0.5 = 128 images a step / 256' in note
        assert '0.001 -> 0.0005' in note

    def test_not_twice(self, cfg):
        cfg.auto_scale_lr = dict(base_batch_size=256, enable=True)
        assert len(launch.prepare_train(cfg)) == 1  # switched on in the config
        rate = cfg.optim_wrapper.optimizer.lr
        assert rate == pytest.approx(1e-3 * 16 / 256)
        launch.prepare_train(cfg, auto_scale_lr=True)
        assert cfg.optim_wrapper.optimizer.lr == rate

    @pytest.mark.parametrize('found', [None, dict(), dict(base_batch_size=0)])
    def test_no_base(self, cfg, found):
        cfg.auto_scale_lr = found
        with pytest.raises(LaunchError, match='auto_scale_lr.base_batch_size'):
            launch.prepare_train(cfg, auto_scale_lr=True)

    def test_no_rate(self, cfg):
        cfg.auto_scale_lr = dict(base_batch_size=256)
        del cfg.optim_wrapper['optimizer']
        with pytest.raises(LaunchError, match='optimizer.lr of .* is missing'):
            launch.scale_learning_rate(cfg, 1)

    def test_no_batch_size(self, cfg):
        del cfg.train_dataloader['batch_size']
        with pytest.raises(LaunchError, match='batch_size is None'):
            launch.global_batch_size(cfg, 1)
        cfg.train_dataloader.batch_sampler = dict(batch_size=3)
        assert launch.global_batch_size(cfg, 2) == 12


class TestResume:
    def test_parts_of_a_checkpoint(self, cfg, tmp_path):
        folder = tmp_path / 'work' / 'epoch_3.pth'
        folder.mkdir(parents=True)
        last = tmp_path / 'work' / 'last_checkpoint'
        last.write_text(str(folder))
        cfg.work_dir = str(tmp_path / 'work')
        with pytest.raises(LaunchError, match='epoch_3.pth, which does not'):
            launch.set_resume(cfg, 'auto')
        (folder / 'rank0.pth').write_bytes(b'')
        assert launch.set_resume(cfg, 'auto')[0] == f'Resuming from {folder}'
        assert cfg.load_from == str(folder)

    def test_nothing_to_resume(self, cfg):
        notes = launch.prepare_train(cfg, work_dir='new', resume='auto')
        assert cfg.resume is False
        assert notes == [
            '--resume auto: no checkpoint in new, starting from the beginning'
        ]

    def test_latest(self, cfg, tmp_path):
        (tmp_path / 'work').mkdir()
        checkpoint = tmp_path / 'work/epoch_3.pth'
        checkpoint.touch()
        (tmp_path / 'work/last_checkpoint').write_text(f'{checkpoint}\n')
        cfg.resume = True  # in the config, the same as --resume auto
        launch.prepare_train(cfg, work_dir='work')
        assert (cfg.resume, cfg.load_from) == (True, str(checkpoint))

        (tmp_path / 'work').rename(tmp_path / 'moved')
        found = launch.latest_checkpoint('moved')
        assert found == os.path.join('moved', 'epoch_3.pth')

    def test_latest_is_gone(self, tmp_path):
        (tmp_path / 'last_checkpoint').write_text('/gone/iter_2.pth')
        with pytest.raises(LaunchError, match='names /gone/iter_2.pth, which'):
            launch.latest_checkpoint(str(tmp_path))

    def test_file(self, cfg, tmp_path):
        (tmp_path / 'a.pth').touch()
        assert launch.set_resume(cfg, 'a.pth')[0] == 'Resuming from a.pth'
        assert (cfg.resume, cfg.load_from) == (True, 'a.pth')
        with pytest.raises(
            LaunchError, match='--resume: checkpoint b.pth not'
        ):
            launch.set_resume(cfg, 'b.pth')

    def test_pretrained_weights_are_not_read_again(self, cfg, tmp_path):
        (tmp_path / 'a.pth').touch()
        other = dict(type='Normal', layer='Linear', std=0.1)
        cfg.model = dict(
            type='Ensemble',
            init_cfg=[dict(type='PretrainedInit', checkpoint='x'), other],
            parts=[
                dict(init_cfg=dict(type='Pretrained', checkpoint='y')),
                dict(init_cfg=dict(other)),
            ],
        )
        assert launch.set_resume(cfg, 'a.pth') == [
            'Resuming from a.pth',
            'The pretrained weights of model.init_cfg, '
            'model.parts.0.init_cfg are not read again: the resumed '
            'checkpoint has them',
        ]
        assert cfg.model == dict(
            type='Ensemble',
            init_cfg=[other],
            parts=[dict(init_cfg=None), dict(init_cfg=other)],
        )

    def test_pretrained_weights_are_read_at_the_beginning(self, cfg, tmp_path):
        (tmp_path / 'a.pth').touch()
        launch.prepare_train(cfg, work_dir='new', resume='auto')
        cfg.load_from = 'a.pth'
        assert launch.set_resume(cfg, None) == []
        assert cfg.model.backbone.init_cfg.checkpoint == 'vit.pth'

    def test_load_from(self, cfg):
        cfg.load_from = 'c.pth'
        with pytest.raises(LaunchError, match='load_from: checkpoint c.pth'):
            launch.prepare_train(cfg)


@pytest.mark.parametrize('field', ['val_evaluator', 'test_evaluator'])
def test_annotations_of_metrics(field, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'here.json').touch()
    metrics = [dict(type='IoU'), dict(type='Coco', ann_file='here.json')]
    for good in (None, metrics, metrics[0], dict(ann_file='s3://a.json')):
        launch.check_annotations(Config({field: good}), field)
    for bad, name in (
        (dict(ann_file='a/b.json'), 'ann_file'),
        ([*metrics, dict(ann_file='a/b.json')], '2.ann_file'),
    ):
        with pytest.raises(LaunchError) as error:
            launch.check_annotations(Config({field: bad}), field)
        assert str(error.value) == (
            f'{field}.{name}: a/b.json not found (current folder {tmp_path}); '
            f'put the data there, or point to it with --cfg-options '
            f'{field}.{name}=PATH'
        )


class TestCheckData:
    def check(self, **dataset):
        cfg = Config(
            dict(
                default_scope='mmpretrain',
                train_dataloader=dict(dataset=dataset),
            )
        )
        launch.check_data(cfg, 'train_dataloader')

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / 'root/images').mkdir(parents=True)
        (tmp_path / 'a.zip').touch()

    def test_found(self):
        kind = dict(type='CustomDataset')
        self.check(**kind, data_root='root', data_prefix='images')
        self.check(**kind, data_prefix='root/images')
        self.check(**kind, data_root='root', data_prefix=dict(img='images'))
        self.check(**kind, data_root='s3://bucket', ann_file='x')
        self.check(type='ropim_mm.ImageZip', zip_file='a.zip', prefix='train')

    @pytest.mark.parametrize(
        'dataset, field, path',
        [
            (dict(data_root='rot'), 'data_root', 'rot'),
            (
                dict(data_root='root', data_prefix='img'),
                'data_prefix',
                'root/img',
            ),
            (
                dict(data_root='root', data_prefix=dict(seg_path='ann')),
                'data_prefix.seg_path',
                'root/ann',
            ),
            (
                dict(data_root='root', ann_file='a.txt'),
                'ann_file',
                'root/a.tx',
            ),
            (dict(zip_file='b.zip'), 'zip_file', 'b.zip'),
            (
                dict(dataset=dict(type='CustomDataset', data_root='deep')),
                'dataset.data_root',
                'deep',
            ),
            (
                dict(datasets=[dict(), dict(data_root='second')]),
                'datasets.1.data_root',
                'second',
            ),
        ],
    )
    def test_not_found(self, dataset, field, path):
        with pytest.raises(LaunchError) as info:
            self.check(**dict(dict(type='CustomDataset'), **dataset))
        message = str(info.value)
        assert message.startswith(f'train_dataloader.dataset.{field}: {path}')
        assert os.getcwd() in message and '--cfg-options' in message

    def test_datasets_that_download(self):
        self.check(type='CIFAR10', data_root='none')
        self.check(type='mmpretrain.CIFAR10', data_root='none')
        with pytest.raises(LaunchError, match='data_root: none not found'):
            self.check(type='CIFAR10', data_root='none', download=False)


class TestPrepareTest:
    @pytest.fixture
    def cfg(self, cfg, tmp_path):
        (tmp_path / 'best.pth').touch()
        cfg.test_cfg = cfg.test_evaluator = dict()
        cfg.test_dataloader = dict(dataset=dict(pipeline=['one']))
        return cfg

    def test_plain(self, cfg):
        cfg.resume = True
        launch.prepare_test(cfg, 'best.pth', work_dir='out')
        assert (cfg.load_from, cfg.resume) == ('best.pth', False)
        assert cfg.work_dir == 'out'
        assert cfg.test_dataloader.collate_fn.type == 'default_collate'

    def test_weights_are_checked_once(self, cfg):
        for _ in range(2):
            launch.prepare_test(cfg, 'best.pth')
            assert cfg.custom_hooks == [
                dict(type='ropim_mm.CheckpointCoverageHook')
            ]

    def test_no_checkpoint(self, cfg):
        with pytest.raises(LaunchError, match='checkpoint no.pth not found'):
            launch.prepare_test(cfg, 'no.pth')

    def test_pretraining_config(self, cfg):
        cfg.test_dataloader = None
        with pytest.raises(LaunchError, match='has no test_dataloader: it'):
            launch.prepare_test(cfg, 'best.pth')

    @pytest.mark.parametrize(
        'scope, switch', [('mmpretrain', 'enable'), ('mmseg', 'draw')]
    )
    def test_pictures(self, cfg, scope, switch, tmp_path):
        cfg.default_scope = scope
        launch.prepare_test(cfg, 'best.pth', show_dir='pictures')
        hook = cfg.default_hooks.visualization
        assert hook.type.startswith(scope) and hook[switch] is True
        folder = str(tmp_path / 'pictures')
        assert folder in (hook.get('out_dir'), cfg.visualizer.get('save_dir'))

    def test_pictures_of_nothing_known(self, cfg):
        cfg.default_scope = 'mmengine'
        with pytest.raises(LaunchError, match="'mmengine' has no pictures"):
            launch.prepare_test(cfg, 'best.pth', show_dir='pictures')

    def test_tta(self, cfg):
        with pytest.raises(LaunchError, match='--tta: .* has no tta_model'):
            launch.prepare_test(cfg, 'best.pth', tta=True)
        cfg.tta_model = dict(type='mmpretrain.AverageClsScoreTTA')
        cfg.tta_pipeline = ['several']
        inner = cfg.model
        launch.prepare_test(cfg, 'best.pth', tta=True)
        assert cfg.model.type == 'mmpretrain.AverageClsScoreTTA'
        assert cfg.model.module == inner
        assert cfg.test_dataloader.dataset.pipeline == ['several']

    @pytest.mark.parametrize(
        'out, item, expected',
        [
            ('a.json', None, 'metrics'),
            ('a.pkl', None, 'pred'),
            ('a.pkl', 'metrics', 'metrics'),
        ],
    )
    def test_out(self, out, item, expected):
        assert launch._check_out(out, item) == expected

    @pytest.mark.parametrize(
        'out, item, message',
        [
            ('a.json', 'pred', 'predictions go to a .pkl'),
            ('a.txt', None, 'metrics go to a .json'),
        ],
    )
    def test_bad_out(self, out, item, message):
        with pytest.raises(LaunchError, match=message):
            launch._check_out(out, item)

    def test_item_without_file(self, cfg):
        with pytest.raises(LaunchError, match='--out-item pred needs --out'):
            launch.test(cfg, None, 'pred')


def test_errors_of_the_user_are_short(capsys, monkeypatch):
    monkeypatch.setenv('RANK', '3')
    with pytest.raises(SystemExit) as info, launch.report_errors():
        raise LaunchError('field x is wrong')
    assert info.value.code == 1
    assert capsys.readouterr().err == 'error [process 3]: field x is wrong\n'
    assert isinstance(info.value.__context__, InputError)
    with pytest.raises(ZeroDivisionError), launch.report_errors():
        _ = 1 / 0


class Unreadable(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise InputError('a.png: no image\nput another one there')


def test_errors_of_loader_workers_are_short(capsys, monkeypatch):
    for name in ('RANK', 'SLURM_PROCID'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit), launch.report_errors():
        list(DataLoader(Unreadable(), num_workers=1))
    assert capsys.readouterr().err == (
        'error: a.png: no image\nput another one there\n'
    )
