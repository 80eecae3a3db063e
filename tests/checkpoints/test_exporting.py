"""Released files in, encoders out."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_models
from ropim_mm.checkpoints import (
    CheckpointError,
    CoverageError,
    UntrustedCheckpointError,
    load_weights,
    read_checkpoint,
)
from ropim_mm.checkpoints.encoders import BEIT, IRPE, PLAIN, encoder_shape
from ropim_mm.checkpoints.exporting import (
    FAMILIES,
    convert_official,
    extract_backbone,
)
from ropim_mm.checkpoints.official import CONVERTERS
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
        f'{target}: 54 tensors, 88,464 parameters, pretraining, BEiT-style, '
        'arch 32 wide, 3 blocks, 4 heads, patch 16x16, grid 4x4'
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


def save_pretrained(method: str, path: Path, **options):
    """A pretrained tiny model and its checkpoint."""
    model = tiny_models.build(method, **options)
    torch.save(dict(meta={}, state_dict=model.state_dict()), path)
    return model.eval()


@pytest.mark.parametrize('format', ['mm', 'safetensors'])
@pytest.mark.parametrize('method', tiny_models.METHODS)
def test_encoders_of_all_methods(method, format, tmp_path):
    """Written, read, loaded: the same features."""
    if format == 'safetensors':
        pytest.importorskip('safetensors')
    source, target = tmp_path / 'a.pth', tmp_path / f'b.{format}'
    model = save_pretrained(method, source)
    summary = extract_backbone(source, target, format)
    family = dict(lomar=IRPE, rmae=PLAIN).get(method, BEIT)
    assert (summary.kind, summary.shape.family) == ('pretraining', family)
    assert summary.shape.grid == (None if method == 'lomar' else (4, 4))
    heads = '' if method == 'rmae' else ', 2 heads'
    assert f'arch 16 wide, 2 blocks{heads}, patch 8x8' in str(summary)

    settings = dict(out_type='raw', final_norm=True)
    if family == BEIT:
        settings = tiny_models.BEIT
    backbone = tiny_models.encoder(method, **settings).eval()
    report = load_weights(
        backbone, read_checkpoint(target), source='b', prefix='backbone.'
    )
    assert report.complete and not report.fresh
    left_over = {'mask_token'} if method in ('lomar', 'conmim') else set()
    assert set(report.superfluous) == left_over
    images = torch.randn(2, 3, 32, 32)
    original = model.momentum.backbone if method == 'conmim' else None
    with torch.no_grad():
        ours = (original or model.backbone)(images)[0]
        assert torch.equal(backbone(images)[0], ours)


def test_student_or_momentum_copy(tmp_path):
    source = tmp_path / 'a.pth'
    model = save_pretrained('conmim', source)
    name = 'patch_embed.projection.weight'
    parts = (model.momentum.backbone, model.backbone)
    assert not torch.equal(*(part.state_dict()[name] for part in parts))
    texts = ('the momentum copy (momentum.backbone.*), which fine-tuning '
             'starts from', 'This is the student (backbone.*)')  # fmt: skip
    for student, part, text in zip((False, True), parts, texts, strict=True):
        target = tmp_path / f'{student}.pth'
        summary = extract_backbone(source, target, student=student)
        written = read_checkpoint(target)
        assert torch.equal(
            written['state_dict'][f'backbone.{name}'], part.state_dict()[name]
        )
        assert text in str(summary)
        assert len(written['state_dict']) == summary.tensors
        prefix = 'backbone.' if student else 'momentum.backbone.'
        assert written['meta']['extracted_prefix'] == prefix
    save_pretrained('ropim', source)
    with pytest.raises(CheckpointError, match='--student: .* no momentum co'):
        extract_backbone(source, tmp_path / 'c.pth', student=True)


def test_timm_gives_the_same_features_of_a_plain_vit(tmp_path):
    vit = pytest.importorskip('timm.models.vision_transformer')
    source, target = tmp_path / 'a.pth', tmp_path / 'timm.pth'
    model = save_pretrained('rmae', source, patch_size=(8, 16))
    extract_backbone(source, target, 'timm')
    other = vit.VisionTransformer(
        img_size=32,
        patch_size=(8, 16),
        num_classes=0,
        global_pool='token',
        embed_dim=16,
        depth=2,
        num_heads=2,
        mlp_ratio=2,
    )
    other.load_state_dict(torch.load(target, weights_only=True), strict=True)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        theirs = other.eval().forward_features(images)
        torch.testing.assert_close(
            model.backbone(images)[0], theirs, rtol=1e-5, atol=1e-5
        )


def test_timm_names_of_conmim_are_those_of_beit(tmp_path):
    source, target = tmp_path / 'a.pth', tmp_path / 'timm.pth'
    model = save_pretrained('conmim', source)
    extract_backbone(source, target, 'timm')
    written = torch.load(target, weights_only=True)
    copy = model.momentum.backbone.state_dict()
    assert 'mask_token' not in written
    for block in range(2):
        assert torch.equal(
            written[f'blocks.{block}.attn.relative_position_bias_table'],
            copy['rel_pos_bias.relative_position_bias_table'],
        )


def test_timm_has_no_attention_like_lomars(tmp_path):
    source = tmp_path / 'a.pth'
    save_pretrained('lomar', source)
    with pytest.raises(CheckpointError) as caught:
        extract_backbone(source, tmp_path / 'b.pth', 'timm')
    assert str(caught.value) == (
        f'{source} has an encoder with contextual relative positions '
        "(layers.N.attn.rpe_k), as LoMaR's. timm has no such attention, and "
        'without it the features would be others. Use --format mm or '
        'safetensors, and ropim_mm.LoMaRViT.'
    )
    assert os.listdir(tmp_path) == ['a.pth']


@pytest.mark.parametrize(
    'method, name', [('ropim', 'attn.qkv.bias'), ('rmae', 'attn.adapter')]
)
def test_timm_names_only_what_timm_has(method, name, tmp_path):
    source = tmp_path / 'a.pth'
    model = save_pretrained(method, source)
    state = {f'backbone.layers.0.{name}': torch.ones(1), **model.state_dict()}
    torch.save(state, source)
    with pytest.raises(
        CheckpointError, match=rf"timm's \w+ has no .* layers\.0\.{name}"
    ):
        extract_backbone(source, tmp_path / 'b.pth', 'timm')
    with pytest.raises(CheckpointError, match="no format 'onnx'. Available"):
        extract_backbone(source, tmp_path / 'b.pth', 'onnx')


@pytest.fixture
def two_files(shared, tmp_path):
    """Student and momentum copy as ConMIM's release writes them."""
    case = shared / 'parity' / 'conmim' / 'pretrain_g4_mps32.npz'
    paths = {}
    with np.load(case, allow_pickle=False) as arrays:
        for group, name in (('state', ''), ('teacher', '_copy')):
            weights = {
                key.removeprefix(f'{group}/'): torch.from_numpy(arrays[key])
                for key in arrays.files
                if key.startswith(f'{group}/')
            }
            paths[group] = tmp_path / f'checkpoint{name}-299.pth'
            torch.save({'model': weights, 'epoch': 299}, paths[group])
    return paths


@pytest.mark.parametrize('given', ['state', 'teacher'])
def test_student_and_copy_from_two_files(two_files, tmp_path, given):
    """Whichever is named, the other one is beside it."""
    target = tmp_path / 'mm.pth'
    summary = convert_official('conmim', two_files[given], target)
    assert (
        f'Student from {two_files["state"]}, momentum copy from '
        f'{two_files["teacher"]}'
    ) in str(summary)
    assert 'Dropped, of no use here: lm_head.weight, lm_head.bias' in str(
        summary
    )
    assert summary.kind == 'pretraining'
    content = read_checkpoint(target)
    written = content['state_dict']
    assert content['meta']['converted_from'] == (
        'checkpoint-299.pth, checkpoint_copy-299.pth'
    )
    for group, prefix in (('state', ''), ('teacher', 'momentum.')):
        official = read_checkpoint(two_files[group])['model']
        assert torch.equal(
            written[f'{prefix}backbone.cls_token'], official['cls_token']
        )
        assert torch.equal(
            written[f'{prefix}neck.fc2.weight'],
            official['projectors.6.weight'],
        )


def test_copy_under_another_name(two_files, tmp_path):
    student, copy = tmp_path / 'one.pth', tmp_path / 'two.pth'
    two_files['state'].rename(student)
    two_files['teacher'].rename(copy)
    summary = convert_official(
        'conmim', student, tmp_path / 'a.pth', momentum=copy
    )
    assert f'Student from {student}, momentum copy from {copy}' in str(summary)
    both = convert_official('conmim', student, tmp_path / 'b.pth')
    assert f'Student and momentum copy are both from {student}' in str(both)
    assert both.tensors == summary.tensors
    written = read_checkpoint(tmp_path / 'b.pth')['state_dict']
    assert torch.equal(
        written['backbone.cls_token'], written['momentum.backbone.cls_token']
    )


def test_copy_of_a_method_without_one(tmp_path):
    with pytest.raises(
        CheckpointError, match='two.pth: ropim has no momentum copy'
    ):
        convert_official(
            'ropim', 'one.pth', tmp_path / 'a.pth', momentum='two.pth'
        )


def released_encoder(family):
    """The names of an encoder as released, without anything around it."""
    names = dict.fromkeys(
        ('cls_token', 'patch_embed.proj.bias', 'blocks.0.norm1.weight',
         'blocks.0.mlp.fc1.bias', 'norm.weight'),
        torch.ones(1, 1, 8),
    )  # fmt: skip
    names['patch_embed.proj.weight'] = torch.ones(8, 3, 4, 4)
    if family == PLAIN:
        names['pos_embed'] = torch.ones(1, 5, 8)
    elif family == IRPE:
        table = 'blocks.0.attn.rpe_k.lookup_table_weight'
        names[table] = torch.ones(1, 4, 50)
    else:
        names['blocks.0.gamma_1'] = names['blocks.0.gamma_2'] = torch.ones(8)
    return names


@pytest.mark.parametrize(
    ('family', 'method', 'wanted', 'fitting'),
    [
        (PLAIN, 'lomar', IRPE, 'rmae'),
        (PLAIN, 'conmim', BEIT, 'rmae'),
        (BEIT, 'lomar', IRPE, 'conmim or ropim'),
    ],
)
def test_a_file_of_another_method(family, method, wanted, fitting, tmp_path):
    source, target = tmp_path / 'a.pth', tmp_path / 'b.pth'
    torch.save({'model': released_encoder(family)}, source)
    with pytest.raises(CheckpointError) as caught:
        convert_official(method, source, target)
    assert str(caught.value) == (
        f'{source} is not a file of {method}: its encoder looks like '
        f'"{family}", expected "{wanted}". Give the method that the file is '
        f'of; with such an encoder: {fitting}.'
    )
    assert os.listdir(tmp_path) == ['a.pth']


@pytest.mark.parametrize(
    ('family', 'method'),
    [(PLAIN, 'rmae'), (BEIT, 'conmim'), (IRPE, 'lomar')],
)
def test_a_file_of_the_method(family, method, tmp_path):
    source, target = tmp_path / 'a.pth', tmp_path / 'b.pth'
    torch.save({'model': released_encoder(family)}, source)
    assert convert_official(method, source, target).shape.family == family


def test_every_converter_has_its_family():
    assert set(FAMILIES) == set(CONVERTERS)


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
    assert str(encoder_shape(state)) == (
        'BEiT-style, arch tiny, patch 16x16, grid 2x2'
    )
    state = {n: t for n, t in state.items() if not n.endswith('_table')}
    assert encoder_shape(state).grid is None


@pytest.mark.parametrize(
    'method, text',
    [
        ('lomar', 'ViT with iRPE, arch tiny, patch 16x16, grid any'),
        ('rmae', 'plain ViT, arch tiny, patch 16x16, grid 3x3'),
    ],
)
def test_shape_of_other_families(method, text):
    state = tiny_models.encoder(
        method, arch='tiny', img_size=48, patch_size=16
    ).state_dict()
    assert str(encoder_shape(state)) == text


def test_positions_of_no_square_are_of_an_unknown_grid():
    state = tiny_models.encoder('rmae', img_size=(32, 48)).state_dict()
    assert encoder_shape(state).grid is None


def windowed(tmp_path, **options):
    source = tmp_path / 'windowed.pth'
    encoder = tiny_models.encoder(
        'ropim', out_type='featmap', img_size=64, window_size=4, **options
    )
    state = {f'backbone.{n}': t for n, t in encoder.state_dict().items()}
    torch.save({'state_dict': state}, source)
    return source, encoder


def test_tables_of_windows_and_of_the_image_are_told(tmp_path):
    source, encoder = windowed(tmp_path, global_blocks=(1,))
    target = tmp_path / 'encoder.pth'
    text = str(extract_backbone(source, target))
    assert text.splitlines()[0].endswith('grid 4x4 and 8x8')
    assert 'tables of different grids, for windows and for the whole' in text
    state = torch.load(target, weights_only=True)['state_dict']
    plain = tiny_models.encoder('ropim', img_size=64, out_type='featmap')
    load_weights(plain, state, source='encoder', prefix='backbone.')
    name = 'layers.1.attn.relative_position_bias_table'
    assert torch.equal(plain.state_dict()[name], encoder.state_dict()[name])
    with pytest.raises(CheckpointError) as caught:
        extract_backbone(source, tmp_path / 'timm.pth', 'timm')
    assert '(4x4 and 8x8, windows and the whole image)' in str(caught.value)
    assert not (tmp_path / 'timm.pth').exists()


def test_tables_of_windows_alone_are_those_of_a_small_image(tmp_path):
    source, encoder = windowed(tmp_path)
    target = tmp_path / 'timm.pth'
    summary = extract_backbone(source, target, 'timm')
    assert summary.shape.grid == (4, 4) and not summary.notes
    state = torch.load(target, weights_only=True)
    assert not any('grid' in name or 'index' in name for name in state)
    name = 'blocks.1.attn.relative_position_bias_table'
    table = encoder.layers[1].attn.relative_position_bias_table
    assert torch.equal(state[name], table)


def test_a_detector_with_a_stem_has_no_encoder_to_take(tmp_path):
    source = tmp_path / 'mimdet.pth'
    encoder = tiny_models.encoder('conmim', out_type='raw')
    state = {
        f'backbone.encoder.{name}': tensor
        for name, tensor in encoder.state_dict().items()
        if not name.startswith('patch_embed')
    }
    torch.save({'state_dict': state}, source)
    with pytest.raises(
        CheckpointError, match='has a MIMDet backbone'
    ) as caught:
        extract_backbone(source, tmp_path / 'b.pth')
    assert 'pretraining checkpoint that it started from' in str(caught.value)
