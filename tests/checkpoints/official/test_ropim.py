"""Names of the released ROPIM models, one for one."""

import pytest
import torch

from ropim_mm.checkpoints import CheckpointError
from ropim_mm.checkpoints.official import convert_state_dict
from ropim_mm.models import ROPIMNeck, ROPIMViT

PRETRAINING = (
    'pretrain_g14_official',
    'pretrain_g4_k2_ratio0p14',
    'pretrain_g4_k4_exact',
    'pretrain_g6_eye',
    'pretrain_g6_nosp',
    'pretrain_g6_official',
    'pretrain_g7_k7',
)


@pytest.mark.parametrize('case', PRETRAINING)
def test_pretraining_model_is_ours(released, arch, case):
    """Every tensor, indices included, is one of our model's, and back."""
    state = released(case, 'state/')
    converted = convert_state_dict('ropim', state)
    grid = round((state['encoder.rel_pos_bias.relative_position_index']
                  .shape[0] - 1) ** 0.5)  # fmt: skip
    patch = state['encoder.patch_embed.proj.weight'].shape[-1]
    model = torch.nn.ModuleDict(
        dict(
            backbone=ROPIMViT(
                arch=arch,
                img_size=grid * patch,
                patch_size=patch,
                out_type='raw',
                final_norm=True,
                use_rel_pos_bias=False,
                use_shared_rel_pos_bias=True,
            ),
            neck=ROPIMNeck(32, patch),
        )
    )
    own = model.state_dict()
    assert set(converted) == set(own)
    for name, tensor in converted.items():
        assert tensor.shape == own[name].shape, name
    # The very same tensors, none twice.
    assert {id(t) for t in converted.values()} == {
        id(t) for t in state.values()
    }
    index = 'backbone.rel_pos_bias.relative_position_index'
    assert torch.equal(converted[index], own[index])


@pytest.mark.parametrize(
    ('case', 'size', 'patch'),
    [('finetune_interp_64_to_96', 96, 16), ('finetune_same_32', 32, 8)],
)
def test_fine_tuned_model_is_ours(released, arch, case, size, patch):
    state = released(case, 'state/')
    converted = convert_state_dict('ropim', state)
    own = ROPIMViT(arch=arch, img_size=size, patch_size=patch).state_dict()
    head = {'head.fc.weight', 'head.fc.bias'}
    assert set(converted) == {f'backbone.{name}' for name in own} | head
    assert torch.equal(converted['head.fc.weight'], state['head.weight'])
    assert torch.equal(
        converted['backbone.ln2.weight'], state['fc_norm.weight']
    )
    index = 'layers.1.attn.relative_position_index'
    assert torch.equal(converted[f'backbone.{index}'], own[index])


@pytest.mark.parametrize(
    ('released_name', 'own'),
    [
        ('encoder.cls_token', 'backbone.cls_token'),
        ('encoder.pos_embed', 'backbone.pos_embed'),
        ('encoder.mask_token', 'backbone.mask_token'),
        ('encoder.norm.weight', 'backbone.ln1.weight'),
        ('encoder.blocks.11.norm2.bias', 'backbone.layers.11.ln2.bias'),
        (
            'encoder.blocks.0.mlp.fc1.weight',
            'backbone.layers.0.ffn.layers.0.0.weight',
        ),
        (
            'encoder.blocks.0.mlp.fc2.bias',
            'backbone.layers.0.ffn.layers.1.bias',
        ),
        ('norm.bias', 'backbone.ln1.bias'),
        ('fc_norm.bias', 'backbone.ln2.bias'),
        ('head.bias', 'head.fc.bias'),
        ('decoder.0.bias', None),  # without an encoder: not a fine-tuned name
    ],
)
def test_names(released_name, own):
    tensor = torch.ones(1)
    if own is None:
        with pytest.raises(CheckpointError, match=released_name):
            convert_state_dict('ropim', {released_name: tensor})
    else:
        converted = convert_state_dict('ropim', {released_name: tensor})
        assert list(converted) == [own]
        assert converted[own] is tensor


def test_unknown_names_are_listed():
    state = dict.fromkeys(
        ('encoder.cls_token', 'encoder.blocks.0.attn.k_bias', 'queue'),
        torch.ones(1),
    )
    with pytest.raises(CheckpointError) as caught:
        convert_state_dict('ropim', state)
    assert str(caught.value).startswith(
        'These are not names of a released ROPIM pretraining model: '
        'encoder.blocks.0.attn.k_bias, queue. Expected encoder.cls_token'
    )


def test_file_in_our_format_is_recognised():
    with pytest.raises(CheckpointError, match="in this project's format"):
        convert_state_dict('ropim', {'backbone.cls_token': torch.ones(1)})


def test_unknown_method():
    with pytest.raises(CheckpointError) as caught:
        convert_state_dict('simmim', {})
    assert "no converter for 'simmim'. Available:" in str(caught.value)
    assert 'ropim' in str(caught.value).split('Available:')[1]
