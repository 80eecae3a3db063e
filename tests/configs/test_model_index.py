"""The model index: names, files and numbers."""

import re
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from mmpretrain import get_model, list_models
from mmpretrain.apis.model import ModelHub

import ropim_mm  # noqa: F401
from config_checks import CONFIGS, build_on_meta, forward_flops, methods
from ropim_mm.stack import StackError, require_detection

ROOT = Path(__file__).resolve().parents[2]
METAFILES = [
    ROOT / name
    for name in yaml.safe_load((ROOT / 'model-index.yml').read_text())[
        'Import'
    ]
]
ENTRIES = {
    entry['Name']: entry
    for path in METAFILES
    for entry in yaml.safe_load(path.read_text())['Models']
}


def needs_operators():
    try:
        require_detection()
    except StackError as error:
        pytest.skip(str(error))


def test_every_config_is_listed_once():
    files = sorted(entry['Config'] for entry in ENTRIES.values())
    assert files == sorted(
        p.relative_to(ROOT).as_posix()
        for metafile in METAFILES
        for p in metafile.parent.rglob('*.py')
    )


def test_downstream_models_exist():
    named = [n for e in ENTRIES.values() for n in e.get('Downstream', ())]
    assert named
    assert set(named) <= set(ENTRIES)


def test_nothing_is_claimed():
    for entry in ENTRIES.values():
        assert entry['Results'] is None
        assert entry['Weights'] is None


def test_every_method_is_listed():
    listed = [
        path.parent.relative_to(CONFIGS).as_posix() for path in METAFILES
    ]
    assert sorted(listed) == methods()


@pytest.mark.parametrize('name', ENTRIES)
def test_epochs_batch_parameters_and_flops(name):
    entry = ENTRIES[name]
    meta = entry['Metadata']
    cfg = Config.fromfile(ROOT / entry['Config'])
    if cfg.train_cfg.get('by_epoch', True):
        assert meta['Epochs'] == cfg.train_cfg.max_epochs
    else:
        assert meta['Iterations'] == cfg.train_cfg.max_iters
    assert meta['Batch Size'] == cfg.auto_scale_lr.base_batch_size
    if cfg.default_scope == 'mmdet':
        needs_operators()
    model = build_on_meta(cfg)
    assert meta['Parameters'] == sum(p.numel() for p in model.parameters())
    if cfg.default_scope == 'mmpretrain':
        assert meta['FLOPs'] == forward_flops(cfg, model)
    else:  # they depend on the photo, and on what is found in it
        assert 'FLOPs' not in meta


@pytest.mark.parametrize('path', METAFILES, ids=lambda p: p.parent.name)
def test_readme_has_the_same_numbers(path):
    """Of pretraining, in the columns that are headed by them."""
    text = (path.parent / 'README.md').read_text()
    assert f'{path.parent.relative_to(ROOT)}/README.md' in path.read_text()
    method = path.parent.name
    pretraining = 0
    for entry in yaml.safe_load(path.read_text())['Models']:
        stem = Path(entry['Config']).stem
        (row,) = re.findall(rf'^\| \[{stem}\].*$', text, re.MULTILINE)
        if not stem.startswith(method):
            continue
        pretraining += 1
        above = text[: text.index(row)].rstrip().rpartition('\n\n')[2]
        heads = [cell.strip() for cell in above.split('\n')[0].split('|')]
        cells = [cell.strip() for cell in row.split('|')]
        meta = entry['Metadata']
        params = float(cells[heads.index('params (M)')])
        assert params == round(meta['Parameters'] / 1e6, 2)
        flops = float(cells[heads.index('FLOPs (G)')])
        assert flops == round(meta['FLOPs'] / 1e9, 2)
        if 'Epochs' in meta and 'epochs' in heads:
            assert int(cells[heads.index('epochs')]) == meta['Epochs']
    assert pretraining


@pytest.mark.parametrize('method', methods())
def test_mmpretrain_finds_them(method):
    found = list_models(f'*{method}*')
    own = [
        name
        for name, entry in ENTRIES.items()
        if entry['Config'].startswith(f'configs/{method}/')
    ]
    assert own
    assert sorted(found) == sorted(own)


def test_mmpretrain_builds_one():
    model = get_model('ropim_vit-tiny-p16_8xb128-amp-coslr-300e_in100')
    assert type(model).__name__ == 'ROPIM'
    assert model.backbone.embed_dims == 192


def test_no_name_of_mmpretrain_is_taken():
    """MMPretrain registers its own models at the first look-up; a name taken
    before would make that fail for all of them."""
    assert 'resnet50_8xb32_in1k' in list_models()
    for name in ENTRIES:
        assert name == name.lower()
        assert Path(ModelHub.get(name).filepath).is_relative_to(ROOT)
