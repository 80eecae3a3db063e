"""The model index: names, files and numbers."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmpretrain import get_model, list_models
from mmpretrain.apis.model import ModelHub
from mmpretrain.registry import MODELS
from torch.utils.flop_counter import FlopCounterMode

import ropim_mm  # noqa: F401

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


@pytest.mark.parametrize('name', ENTRIES)
def test_epochs_batch_parameters_and_flops(name):
    entry = ENTRIES[name]
    meta = entry['Metadata']
    cfg = Config.fromfile(ROOT / entry['Config'])
    assert meta['Epochs'] == cfg.train_cfg.max_epochs
    assert meta['Batch Size'] == cfg.auto_scale_lr.base_batch_size

    side = cfg.model.backbone.img_size
    with torch.device('meta'):
        model = MODELS.build(cfg.model).eval()
        image = torch.empty(1, 3, side, side)
    count = sum(p.numel() for p in model.parameters())
    assert meta['Parameters'] == count
    forward = getattr(model, 'reconstruct', model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward(image)
    # The counter counts a multiplication and an addition as two.
    assert meta['FLOPs'] == counter.get_total_flops() // 2


def test_readme_has_the_same_numbers():
    text = (ROOT / 'configs' / 'ropim' / 'README.md').read_text()
    for entry in ENTRIES.values():
        stem = Path(entry['Config']).stem
        (row,) = re.findall(rf'^\| \[{stem}\].*$', text, re.MULTILINE)
        if not stem.startswith('ropim'):
            continue
        meta = entry['Metadata']
        cells = [cell.strip() for cell in row.split('|')]
        assert float(cells[3]) == round(meta['Parameters'] / 1e6, 2)
        assert float(cells[4]) == round(meta['FLOPs'] / 1e9, 2)
        assert int(cells[6]) == meta['Epochs']


def test_mmpretrain_finds_them():
    found = list_models('*ropim*')
    assert sorted(found) == sorted(ENTRIES)
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
