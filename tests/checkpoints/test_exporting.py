"""Released files in, encoders out."""

import os

import pytest
import torch

from ropim_mm.checkpoints import (
    CheckpointError,
    CoverageError,
    UntrustedCheckpointError,
    load_weights,
    read_checkpoint,
)
from ropim_mm.checkpoints.exporting import (
    convert_official,
    encoder_shape,
    extract_backbone,
)
from ropim_mm.models import ROPIMViT


@pytest.fixture
def official(released, tmp_path, yacs_node):
    """A pretraining file as released, with its pickled yacs config."""
    path = tmp_path / 'ckpt_epoch_299.pth'
    content = {
        'model': released('finetune_interp_64_to_96', 'ckpt/'),
        'optimizer': {'state': {}, 'param_groups': [{'lr': 1e-3}]},
        'lr_scheduler': {'t': 1},
        'max_accuracy': 0.0,
        'epoch': 299,
    }
    yacs_node(content, path)
    return path


def pretraining_encoder(arch: dict) -> ROPIMViT:
    return ROPIMViT(
        arch=arch,
        img_size=64,
        out_type='raw',
        final_norm=True,
        use_rel_pos_bias=False,
        use_shared_rel_pos_bias=True,
    )


def test_converts_without_yacs(official, tmp_path, released):
    target = tmp_path / 'mm.pth'
    summary = convert_official('ropim', official, target)
    assert str(summary) == (
        f'{target}: 54 tensors, 88,464 parameters, pretraining, arch 32 '
        'wide, 3 blocks, 4 heads, patch 16x16, grid 4x4'
    )
    written = torch.load(target, weights_only=True)
    assert written['meta']['converted_from'] == 'ckpt_epoch_299.pth'
    assert written['meta']['method'] == 'ropim'
    assert 'licence' in written['meta']
    weights = released('finetune_interp_64_to_96', 'ckpt/')
    assert torch.equal(
        written['state_dict']['backbone.layers.2.ffn.layers.1.weight'],
        weights['encoder.blocks.2.mlp.fc2.weight'],
    )
    assert torch.equal(
        written['state_dict']['neck.decoder.0.bias'], weights['decoder.0.bias']
    )


def test_fine_tuned_file(released, tmp_path):
    source, target = tmp_path / 'a.pth', tmp_path / 'b.pth'
    torch.save({'model': released('finetune_same_32', 'state/')}, source)
    summary = convert_official('ropim', source, target)
    assert (summary.kind, summary.tensors) == ('fine-tuned', 58)
    assert summary.shape.grid == (4, 4)


def test_hostile_file_gives_nothing(hostile, marker, tmp_path):
    path, name = hostile
    target = tmp_path / 'out' / 'b.pth'
    for convert in (
        lambda: convert_official('ropim', path, target),
        lambda: extract_backbone(path, target),
    ):
        with pytest.raises(UntrustedCheckpointError, match=name):
            convert()
    assert not marker.exists()
    assert not target.parent.exists()


def test_destination_is_refused_before_the_source_is_read(tmp_path):
    target = tmp_path / 'b.pth'
    target.write_bytes(b'old')
    with pytest.raises(CheckpointError, match='b.pth exists already'):
        convert_official('ropim', tmp_path / 'nowhere.pth', target)
    with pytest.raises(CheckpointError, match='b.pth exists already'):
        extract_backbone(tmp_path / 'nowhere.pth', target)
    assert target.read_bytes() == b'old'


def test_unknown_names_name_the_file(tmp_path):
    source = tmp_path / 'a.pth'
    torch.save({'model': {'conv1.weight': torch.ones(1)}}, source)
    with pytest.raises(CheckpointError) as caught:
        convert_official('ropim', source, tmp_path / 'b.pth')
    assert str(caught.value).startswith(f'{source}: These are not names')
    assert 'conv1.weight' in str(caught.value)
    with pytest.raises(CheckpointError, match='a.pth has no encoder'):
        extract_backbone(source, tmp_path / 'b.pth')
    assert os.listdir(tmp_path) == ['a.pth']


@pytest.mark.parametrize('format', ['mm', 'safetensors'])
def test_extracted_encoder_loads_again(pretrained, tmp_path, arch, format):
    if format == 'safetensors':
        pytest.importorskip('safetensors')
    suffix = 'safetensors' if format == 'safetensors' else 'pth'
    target = tmp_path / f'encoder.{suffix}'
    summary = extract_backbone(pretrained, target, format)
    assert (summary.tensors, summary.kind) == (52, 'pretraining')
    content = read_checkpoint(target)
    assert content['meta']['extracted_from'] == 'pretrained.pth'
    backbone = pretraining_encoder(arch)
    report = load_weights(
        backbone, content, source='encoder', prefix='backbone.'
    )
    assert len(report.matched) == report.total == 51
    before = read_checkpoint(pretrained)['state_dict']
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[f'backbone.{name}'])
    with pytest.raises(CoverageError):
        deeper = pretraining_encoder(dict(arch, num_layers=4))
        load_weights(deeper, content, source='encoder', prefix='backbone.')


def test_extracted_file_carries_no_hidden_storage(tmp_path, pretrained):
    """A tensor that is a view would be saved with all behind it."""
    content = read_checkpoint(pretrained)
    big = torch.zeros(1_000_000)
    content['state_dict']['backbone.cls_token'] = big[:32].view(1, 1, 32)
    source, target = tmp_path / 'a.pth', tmp_path / 'b.pth'
    torch.save(content, source)
    assert source.stat().st_size > 4_000_000
    extract_backbone(source, target)
    assert target.stat().st_size < 500_000


@pytest.mark.parametrize('stage', ['pretraining', 'fine-tuned'])
def test_timm_gives_the_same_features(released, tmp_path, arch, stage):
    beit = pytest.importorskip('timm.models.beit')
    torch.manual_seed(0)
    settings = dict(arch=arch, img_size=64, out_type='raw')
    if stage == 'pretraining':
        backbone = pretraining_encoder(arch)
    else:
        backbone = ROPIMViT(**settings, final_norm=True)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    source, target = tmp_path / 'a.pth', tmp_path / 'timm.pth'
    state = {f'backbone.{n}': t for n, t in backbone.state_dict().items()}
    torch.save({'state_dict': state}, source)
    summary = extract_backbone(source, target, 'timm')
    assert summary.kind == stage
    other = beit.Beit(
        img_size=64,
        patch_size=16,
        num_classes=0,
        global_pool='token',
        embed_dim=32,
        depth=3,
        num_heads=4,
        init_values=0.1,
        use_abs_pos_emb=False,
        use_rel_pos_bias=True,
    )
    other.load_state_dict(torch.load(target, weights_only=True), strict=True)
    images = torch.randn(2, 3, 64, 64)
    backbone.eval(), other.eval()
    with torch.no_grad():
        ours, theirs = backbone(images)[0], other.forward_features(images)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_timm_names_only_beit_style_encoders(pretrained, tmp_path):
    content = read_checkpoint(pretrained)
    content['state_dict']['backbone.layers.0.attn.rpe_k'] = torch.ones(1)
    source = tmp_path / 'a.pth'
    torch.save(content, source)
    with pytest.raises(CheckpointError, match=r'no tensors for layers\.0\.at'):
        extract_backbone(source, tmp_path / 'b.pth', 'timm')
    with pytest.raises(CheckpointError, match="no format 'onnx'. Available"):
        extract_backbone(source, tmp_path / 'b.pth', 'onnx')


@pytest.mark.parametrize('size', [(64, 32), (32, 64), (16, 48), (48, 16)])
@pytest.mark.parametrize('one_table', [True, False])
def test_shape_of_other_grids(arch, size, one_table):
    state = ROPIMViT(
        arch=arch,
        img_size=size,
        patch_size=(16, 8),
        use_rel_pos_bias=not one_table,
        use_shared_rel_pos_bias=one_table,
    ).state_dict()
    shape = encoder_shape(state)
    assert shape.patch_size == (16, 8)
    assert shape.grid == (size[0] // 16, size[1] // 8)


def test_name_of_known_archs():
    state = ROPIMViT(arch='tiny', img_size=32).state_dict()
    state = {n: t for n, t in state.items() if not n.endswith('_index')}
    assert str(encoder_shape(state)) == 'arch tiny, patch 16x16, grid 2x2'
    state = {n: t for n, t in state.items() if not n.endswith('_table')}
    assert encoder_shape(state).grid is None
