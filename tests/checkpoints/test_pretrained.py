"""A backbone's ``init_cfg`` loads with a coverage check, in every model."""

from copy import deepcopy

import pytest
import torch
from mmengine.config import Config
from mmengine.model import (
    BaseModule,
    ExponentialMovingAverage,
    PretrainedInit,
)
from mmengine.runner.checkpoint import load_checkpoint, load_state_dict
from mmpretrain import get_model
from mmpretrain.models import ImageClassifier
from mmpretrain.models.backbones import BEiTViT

from ropim_mm.checkpoints import (
    CheckpointError,
    CoverageError,
    UntrustedCheckpointError,
    read_checkpoint,
)
from ropim_mm.checkpoints.official import convert_state_dict
from ropim_mm.checkpoints.pretrained import unchecked_pretrained
from ropim_mm.models import ROPIMViT


@pytest.fixture
def build(arch, pretrained):
    """Builds a fine-tuning encoder with the pretrained file in init_cfg."""

    def build(init: dict | None = None, **settings: object) -> ROPIMViT:
        init_cfg = dict(
            type='Pretrained', checkpoint=str(pretrained), prefix='backbone.'
        )
        init_cfg.update(init or {})
        settings = {'arch': arch, 'img_size': 96, **settings}
        return ROPIMViT(**settings, init_cfg=init_cfg)

    return build


def test_weights_are_those_the_released_loader_gives(build, released, log):
    """The shared table goes to every block, resized from 4x4 to 6x6."""
    backbone = build()
    backbone.init_weights()
    reference = convert_state_dict(
        'ropim', released('finetune_interp_64_to_96', 'state/')
    )
    state = backbone.state_dict()
    compared = 0
    for name, tensor in reference.items():
        name = name.removeprefix('backbone.')
        if name in state and not name.startswith('ln2.'):
            torch.testing.assert_close(
                state[name], tensor, rtol=1e-5, atol=1e-6
            )
            compared += 1
    assert compared == 54
    assert 'matched 51 of 53 tensors, 64,336 of 64,400 parameters' in log.text
    assert 'left as initialised: ln2.weight, ln2.bias' in log.text
    assert 'not used from the file: ln1.weight, ln1.bias' in log.text


def test_inside_a_classifier(build, pretrained, arch, log):
    """The parent's init_weights reaches the check and keeps its record."""
    model = ImageClassifier(
        backbone=build(),
        head=dict(type='LinearClsHead', num_classes=5, in_channels=32),
    )
    model.init_weights()
    expected = read_checkpoint(pretrained)['state_dict']
    for name in ('cls_token', 'layers.2.ffn.layers.1.weight'):
        assert torch.equal(
            model.backbone.state_dict()[name], expected[f'backbone.{name}']
        )
    assert (
        'backbone.cls_token - torch.Size([1, 1, 32]): \n'
        'Pretrained: matched 51 of 53 tensors'
    ) in log.text
    assert not hasattr(model.backbone, '_params_init_info')
    assert model.backbone.is_init
    assert model.backbone.init_cfg['type'] == 'Pretrained'


@pytest.mark.parametrize('kind', ['Pretrained', PretrainedInit])
def test_type_as_text_or_class_and_beside_others(build, pretrained, kind):
    backbone = build()
    backbone.init_cfg = [
        dict(backbone.init_cfg, type=kind),
        dict(type='Constant', layer='LayerNorm', val=7.0),
    ]
    backbone.init_weights()
    expected = read_checkpoint(pretrained)['state_dict']
    # Loaded last; only what the file lacks keeps the other initialisation.
    assert torch.equal(
        backbone.layers[0].ln1.weight, expected['backbone.layers.0.ln1.weight']
    )
    assert backbone.ln2.weight.unique().tolist() == [7.0]


def test_second_call_changes_nothing(build, log):
    backbone = build()
    backbone.init_weights()
    state = backbone.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    backbone.init_weights()
    assert log.text.count('ROPIMViT from ') == 1
    # Nor does it initialise anew: that would be lost training.
    assert {'cls_token', 'layers.1.attn.qkv.weight'} <= before.keys()
    for name, tensor in before.items():
        assert torch.equal(state[name], tensor), name


def test_shallow_model_stops(build, arch):
    backbone = build(arch=dict(arch, num_layers=2))
    with pytest.raises(CoverageError) as caught:
        backbone.init_weights()
    assert len(caught.value.report.unexpected) == 15
    assert '  layers.2.attn.qkv.weight\n' in str(caught.value)


def test_deep_model_stops_and_can_be_tried_again(build, arch, pretrained):
    backbone = build(arch=dict(arch, num_layers=4))
    for _ in range(2):
        with pytest.raises(CoverageError) as caught:
            backbone.init_weights()
        assert not backbone.is_init
    assert '  layers.3.attn.qkv.weight\n' in str(caught.value)
    # The table is expanded to every block, so it is not what is missing.
    assert len(caught.value.report.missing) == 15
    backbone.init_cfg['skip_keys'] = ['layers.3']
    backbone.init_weights()
    assert backbone.is_init


def test_other_patch_size_stops(build):
    with pytest.raises(CoverageError) as caught:
        build(img_size=48, patch_size=8).init_weights()
    assert caught.value.report.mismatched == (
        ('patch_embed.projection.weight', (32, 3, 16, 16), (32, 3, 8, 8)),
    )
    backbone = build(
        dict(skip_keys=['patch_embed.projection.weight']),
        img_size=48,
        patch_size=8,
    )
    backbone.init_weights()


@pytest.mark.parametrize('empty', ['', None])
def test_empty_checkpoint(build, empty):
    with pytest.raises(CheckpointError) as caught:
        build(dict(checkpoint=empty)).init_weights()
    assert 'init_cfg of ROPIMViT' in str(caught.value)
    assert '--cfg-options model.backbone.init_cfg.checkpoint=FILE' in str(
        caught.value
    )


def test_unknown_key_of_init_cfg(build):
    with pytest.raises(CheckpointError, match='has the keys prefixes'):
        build(dict(prefixes='backbone.')).init_weights()


def test_missing_file(build, tmp_path):
    path = str(tmp_path / 'nowhere.pth')
    with pytest.raises(FileNotFoundError, match=path):
        build(dict(checkpoint=path)).init_weights()


def test_trust_is_a_key_of_init_cfg(build, hostile, marker):
    path, name = hostile
    with pytest.raises(UntrustedCheckpointError, match=name):
        build(dict(checkpoint=str(path))).init_weights()
    assert not marker.exists()
    with pytest.raises(CheckpointError, match='holds no tensor of ROPIMViT'):
        build(dict(checkpoint=str(path), trust=True)).init_weights()
    assert marker.exists() or name == 'builtins.getattr'


def test_shared_table_of_pretraining(build, pretrained):
    """Continuing to pretrain: every encoder tensor is taken."""
    backbone = build(
        img_size=64,
        out_type='raw',
        final_norm=True,
        use_rel_pos_bias=False,
        use_shared_rel_pos_bias=True,
    )
    backbone.init_weights()
    state = read_checkpoint(pretrained)['state_dict']
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, state[f'backbone.{name}']), name


@pytest.mark.parametrize('one_table', [True, False])
def test_mmpretrain_takes_the_same_file(arch, pretrained, one_table, log):
    """With one table or with one a block, MMPretrain's own encoder."""
    backbone = BEiTViT(
        arch=arch,
        img_size=64,
        out_type='raw',
        use_rel_pos_bias=not one_table,
        use_shared_rel_pos_bias=one_table,
        init_cfg=dict(
            type='Pretrained', checkpoint=str(pretrained), prefix='backbone.'
        ),
    )
    backbone.init_weights()
    state = read_checkpoint(pretrained)['state_dict']
    table = 'relative_position_bias_table'
    for name, tensor in backbone.state_dict().items():
        if not one_table and 'relative_position' in name:
            name = name.replace(name.split('attn.')[0] + 'attn.', '')
            name = f'rel_pos_bias.{name}'
        assert torch.equal(tensor, state[f'backbone.{name}']), name
    unexpected = 'unexpected key in source state_dict: ln1.weight, ln1.bias\n'
    assert unexpected in log.text
    if one_table:
        assert 'missing keys' not in log.text
    else:
        # Indices, which it computes itself; no table is missing.
        missing = log.text.split('missing keys in source state_dict: ')[1]
        assert table not in missing.splitlines()[0]


def test_without_pretrained_nothing_changes(arch):
    backbone = ROPIMViT(arch=arch, img_size=64)
    backbone.init_weights()
    assert backbone.is_init
    assert isinstance(backbone, BaseModule)
    assert backbone.init_cfg is None


def _classifier(arch: dict, **settings: object) -> ImageClassifier:
    return ImageClassifier(
        backbone=ROPIMViT(arch=arch, img_size=64),
        head=dict(type='LinearClsHead', num_classes=5, in_channels=32),
        **settings,
    )


@pytest.fixture
def foreign(arch, tmp_path):
    """Weights of a classifier, its encoder under another prefix."""
    state = _classifier(arch).state_dict()
    path = tmp_path / 'foreign.pth'
    renamed = {n.replace('backbone.', 'encoder.'): t for n, t in state.items()}
    torch.save({'state_dict': renamed}, path)
    return path


def test_whole_model_whose_encoder_is_not_in_the_file(arch, foreign):
    """MMEngine would warn that nothing matched, and train."""
    init_cfg = dict(type='Pretrained', checkpoint=str(foreign))
    model = _classifier(arch, init_cfg=init_cfg)
    message = (
        "tensor of ROPIMViT under the prefix 'backbone.', as backbone.cls_"
        r"token. Found the prefixes 'encoder.' \(56 tensors\), 'head.' \(2"
    )
    with pytest.raises(CheckpointError, match=message):
        model.init_weights()
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(_classifier(arch), str(foreign))
    # Without a wrapper that shows the whole file.
    plain = torch.nn.ModuleDict({'backbone': ROPIMViT(arch=arch, img_size=64)})
    message = "under the prefix 'backbone.', as backbone.cls_token. Found not"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(plain, str(foreign))
    with pytest.raises(CheckpointError, match="under the prefix '', as cls_"):
        load_checkpoint(ROPIMViT(arch=arch, img_size=64), str(foreign))


def test_model_by_name_whose_encoder_is_not_in_the_file(arch, foreign):
    config = Config(
        dict(
            model=dict(
                type='ImageClassifier',
                backbone=dict(
                    type='ropim_mm.ROPIMViT', arch=arch, img_size=64
                ),
            )
        )
    )
    with pytest.raises(CheckpointError, match="prefixes 'encoder.'"):
        get_model(config, pretrained=str(foreign))


def test_loads_that_are_let_through(arch, tmp_path):
    model = _classifier(arch)
    state = model.state_dict()
    path = tmp_path / 'a.pth'
    one = {'backbone.layers.0.gamma_1': torch.full((32,), 3.0)}
    torch.save({'state_dict': one}, path)
    load_checkpoint(model, str(path))
    assert model.backbone.layers[0].gamma_1[0] == 3
    # A head alone goes into the head; PyTorch does not tell the modules that
    # a load is not strict.
    head = {n: t + 1 for n, t in state.items() if n.startswith('head.')}
    with pytest.raises(CheckpointError, match='model.head.load_state_dict'):
        model.load_state_dict(head, strict=False)
    own = {n.removeprefix('head.'): t for n, t in head.items()}
    model.head.load_state_dict(own)
    assert torch.equal(model.head.fc.weight, head['head.fc.weight'])
    model.data_preprocessor.load_state_dict({})
    model.backbone.load_state_dict({}, strict=False)
    # Averages and copies have the encoder under a prefix of their own.
    average = ExponentialMovingAverage(model)
    average.load_state_dict(average.state_dict())
    load_state_dict(average, average.state_dict(), strict=True)
    load_state_dict(deepcopy(model), model.state_dict(), strict=True)


def _config(**settings: object) -> Config:
    return Config(dict(default_scope='mmpretrain', model=settings))


FILE = dict(type='Pretrained', checkpoint='a.pth')


def test_unchecked_pretrained_finds_what_has_no_check():
    ours = dict(type='ropim_mm.ROPIMViT', arch='tiny', init_cfg=FILE)
    theirs = dict(type='BEiTViT', init_cfg=[dict(type='Constant'), FILE])
    found = unchecked_pretrained(
        _config(type='ImageClassifier', backbone=ours, init_cfg=FILE)
    )
    assert found == ['model.init_cfg']
    ours_as_class = dict(ours, type=ROPIMViT)
    for backbone, paths in (
        (ours, []),
        (ours_as_class, []),
        (theirs, ['model.backbone.init_cfg']),
        (dict(type='Unknown', init_cfg=FILE), ['model.backbone.init_cfg']),
    ):
        cfg = _config(type='ImageClassifier', backbone=backbone, head=None)
        assert unchecked_pretrained(cfg) == paths
    cfg = _config(
        type='ImageClassifier',
        pretrained='a.pth',
        neck=[dict(type='GlobalAveragePooling'), dict(init_cfg=FILE)],
    )
    assert unchecked_pretrained(cfg) == [
        'model.pretrained',
        'model.neck.1.init_cfg',
    ]
    assert unchecked_pretrained(Config(dict(train_cfg=None))) == []
