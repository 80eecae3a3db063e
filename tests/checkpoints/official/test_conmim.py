"""Names of the released ConMIM models; two files make one model."""

import numpy as np
import pytest
import torch

from ropim_mm.checkpoints import CheckpointError
from ropim_mm.checkpoints.official import convert_state_dict, dropped_names
from ropim_mm.checkpoints.official.conmim import find_pair, join
from ropim_mm.models import ConMIM, ConMIMViT

ARCH = dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=128)


@pytest.fixture(scope='module')
def arrays(shared):
    def load(case, group):
        path = shared / 'parity' / 'conmim' / f'{case}.npz'
        with np.load(path, allow_pickle=False) as file:
            return {
                name[len(group) :]: torch.from_numpy(file[name])
                for name in file.files
                if name.startswith(group)
            }

    return load


def build(size, patch, **backbone):
    return ConMIM(
        backbone=dict(
            type='ropim_mm.ConMIMViT',
            arch=ARCH,
            img_size=size,
            patch_size=patch,
            out_type='raw',
            final_norm=True,
            use_rel_pos_bias=False,
            use_shared_rel_pos_bias=True,
            with_mask_token=True,
            **backbone,
        ),
        neck=dict(
            type='ropim_mm.ConMIMNeck',
            in_channels=32,
            hid_channels=64,
            out_channels=16,
        ),
        head=dict(type='ropim_mm.ConMIMHead'),
    )


@pytest.mark.parametrize(
    ('case', 'size', 'patch', 'absolute'),
    [
        ('pretrain_g4_mps32', 64, 16, False),
        ('pretrain_g14_mps', 112, 8, False),
        ('pretrain_g4_uneven_abspos', 32, 8, True),
    ],
)
def test_two_files_are_one_model(arrays, case, size, patch, absolute):
    """Every tensor of both is one of our model's, and back."""
    student, copy = arrays(case, 'state/'), arrays(case, 'teacher/')
    assert dropped_names('conmim', student) == [
        'lm_head.weight',
        'lm_head.bias',
    ]
    weights = join(
        convert_state_dict('conmim', student),
        convert_state_dict('conmim', copy),
    )
    model = build(size, patch, use_abs_pos_emb=absolute)
    own = model.state_dict()
    assert set(weights) == set(own)
    for name, tensor in weights.items():
        assert tensor.shape == own[name].shape, name
    assert {id(t) for t in weights.values()} == {
        id(t)
        for state in (student, copy)
        for n, t in state.items()
        if not n.startswith('lm_head.')
    }
    assert torch.equal(
        weights['momentum.backbone.cls_token'], copy['cls_token']
    )
    assert torch.equal(
        weights['neck.fc1.weight'], student['projectors.3.weight']
    )


def test_one_file_gives_both_parts(arrays):
    state = arrays('pretrain_g4_mps32', 'teacher/')
    weights = join(convert_state_dict('conmim', state))
    build(64, 16).load_state_dict(weights, strict=True)
    for name in ('backbone.mask_token', 'neck.bn2.running_var'):
        assert weights[name] is weights[f'momentum.{name}']


@pytest.mark.parametrize(
    ('case', 'size', 'patch'),
    [('finetune_interp_64_to_96', 96, 16), ('finetune_same_32', 32, 8)],
)
def test_fine_tuned_model_is_ours(arrays, case, size, patch):
    state = arrays(case, 'state/')
    converted = join(convert_state_dict('conmim', state))
    own = ConMIMViT(arch=ARCH, img_size=size, patch_size=patch).state_dict()
    head = {'head.fc.weight', 'head.fc.bias'}
    assert set(converted) == {f'backbone.{name}' for name in own} | head
    assert torch.equal(
        converted['backbone.ln2.weight'], state['fc_norm.weight']
    )


@pytest.mark.parametrize(
    ('released', 'own'),
    [
        ('cls_token', 'backbone.cls_token'),
        ('mask_token', 'backbone.mask_token'),
        ('pos_embed', 'backbone.pos_embed'),
        ('norm.bias', 'backbone.ln1.bias'),
        ('blocks.11.norm2.bias', 'backbone.layers.11.ln2.bias'),
        ('projectors.0.weight', 'neck.fc0.weight'),
        ('projectors.1.bias', 'neck.bn0.bias'),
        ('projectors.4.running_mean', 'neck.bn1.running_mean'),
        ('projectors.6.weight', 'neck.fc2.weight'),
        ('projectors.7.num_batches_tracked', 'neck.bn2.num_batches_tracked'),
        ('head.weight', 'head.fc.weight'),
    ],
)
def test_names(released, own):
    tensor = torch.ones(1)
    assert convert_state_dict('conmim', {released: tensor}) == {own: tensor}


@pytest.mark.parametrize(
    'name', ['projectors.2.weight', 'projectors.8.bias', 'queue', 'lm_head.x']
)
def test_unknown_names_are_listed(name):
    state = dict.fromkeys(('cls_token', name), torch.ones(1))
    with pytest.raises(CheckpointError) as caught:
        convert_state_dict('conmim', state)
    assert str(caught.value).startswith(
        f'These are not names of a released ConMIM model: {name}. Expected'
    )


def test_file_in_our_format_is_recognised():
    with pytest.raises(CheckpointError, match="in this project's format"):
        convert_state_dict('conmim', {'backbone.cls_token': torch.ones(1)})


def test_student_and_copy_of_two_models(arrays):
    student, copy = (
        convert_state_dict('conmim', arrays(case, 'state/'))
        for case in ('pretrain_g4_mps32', 'pretrain_g4_uneven_abspos')
    )
    with pytest.raises(CheckpointError) as caught:
        join(student, copy)
    assert 'not of one model: backbone.patch_embed.projection.weight, ' in str(
        caught.value
    )
    assert 'backbone.pos_embed' in str(caught.value)


def test_copy_with_a_fine_tuned_file(arrays):
    tuned = convert_state_dict('conmim', arrays('finetune_same_32', 'state/'))
    with pytest.raises(CheckpointError, match=r'has no projectors\.\*'):
        join(tuned, tuned)


@pytest.mark.parametrize('given', ['', '_copy'])
@pytest.mark.parametrize('epoch', ['299', 'best'])
def test_pair_is_found_from_either_file(tmp_path, given, epoch):
    student = tmp_path / f'checkpoint-{epoch}.pth'
    copy = tmp_path / f'checkpoint_copy-{epoch}.pth'
    path = str(tmp_path / f'checkpoint{given}-{epoch}.pth')
    open(path, 'w').close()
    assert find_pair(path) == (path, None)
    student.touch(), copy.touch()
    assert find_pair(path) == (str(student), str(copy))


def test_other_names_have_no_pair(tmp_path):
    for name in ('checkpoint-1.pth', 'checkpoint_copy-1.pth', 'model.pth'):
        (tmp_path / name).touch()
    assert find_pair(tmp_path / 'model.pth')[1] is None
