"""Names of the released R-MAE models, one for one."""

import json

import numpy as np
import pytest
import torch
from mmpretrain.models import VisionTransformer
from mmpretrain.registry import MODELS

from ropim_mm.checkpoints import CheckpointError
from ropim_mm.checkpoints.official import convert_state_dict
from ropim_mm.evaluation.parity.rmae import model_config

CASES = (
    'pretrain_random_mae',
    'pretrain_randomfg_mae_bg0p5',
    'pretrain_random_regiononly',
    'pretrain_randomfg_regiononly_bg0p5',
    'pretrain_noregion',
    'pretrain_two_ratios',
)


@pytest.fixture
def released(shared):
    def load(case):
        folder = shared / 'parity' / 'rmae'
        with np.load(folder / f'{case}.npz') as arrays:
            state = {
                name[len('state/') :]: torch.from_numpy(arrays[name])
                for name in arrays.files
                if name.startswith('state/')
            }
        manifest = json.loads((folder / 'manifest.json').read_text())
        return state, manifest['cases'][case]

    return load


@pytest.mark.parametrize('case', CASES)
def test_pretraining_model_is_ours(released, case):
    state, info = released(case)
    converted = convert_state_dict('rmae', state)
    own = MODELS.build(model_config(info)).state_dict()
    assert set(converted) == set(own)
    for name, tensor in converted.items():
        assert tensor.shape == own[name].shape, name
    # The very same tensors, in the same order.
    assert [id(t) for t in converted.values()] == [
        id(t) for t in state.values()
    ]


def test_mmpretrain_loads_the_encoder(released):
    state, _ = released('pretrain_noregion')
    converted = convert_state_dict('rmae', state)
    peer = VisionTransformer(
        arch=dict(
            embed_dims=32,
            num_layers=2,
            num_heads=4,
            feedforward_channels=128,
        ),
        img_size=32,
        patch_size=8,
    )
    result = peer.load_state_dict(
        {
            name.removeprefix('backbone.'): tensor
            for name, tensor in converted.items()
            if name.startswith('backbone.')
        }
    )
    assert not result.missing_keys and not result.unexpected_keys


@pytest.mark.parametrize(
    ('name', 'own'),
    [
        ('cls_token', 'backbone.cls_token'),
        ('norm.weight', 'backbone.ln1.weight'),
        ('blocks.11.attn.qkv.bias', 'backbone.layers.11.attn.qkv.bias'),
        (
            'blocks.0.mlp.fc2.weight',
            'backbone.layers.0.ffn.layers.1.weight',
        ),
        ('mask_token', 'neck.mask_token'),
        ('decoder_norm.bias', 'neck.ln1.bias'),
        (
            'decoder_blocks.7.norm2.weight',
            'neck.decoder_blocks.7.ln2.weight',
        ),
        (
            'region_cross_blocks.3.attn.proj.weight',
            'region_branch.memory.decoder_blocks.3.attn.proj.weight',
        ),
        ('region_dec_norm.weight', 'region_branch.memory.ln1.weight'),
        (
            'region_enc_blocks.0.mlp.fc1.bias',
            'region_branch.encoder.layers.0.ffn.layers.0.0.bias',
        ),
        ('region_proj.0.weight', 'region_branch.to_query.0.weight'),
        ('region_pred.1.bias', 'region_branch.pred.bias'),
    ],
)
def test_names(name, own):
    tensor = torch.ones(1)
    converted = convert_state_dict('rmae', {name: tensor})
    assert list(converted) == [own]
    assert converted[own] is tensor


def test_the_last_query_block_is_the_expansion():
    names = (
        'region_dec_blocks.0.norm3.weight',
        'region_dec_blocks.0.cross_attn.kv.bias',
        'region_dec_blocks.1.norm3.weight',
        'region_dec_blocks.1.proj.bias',
    )
    state = dict.fromkeys(names, torch.ones(1))
    assert list(convert_state_dict('rmae', state)) == [
        'region_branch.layers.0.ln3.weight',
        'region_branch.layers.0.cross_attn.kv.bias',
        'region_branch.expansion.ln2.weight',
        'region_branch.expansion.memory.bias',
    ]


@pytest.mark.parametrize(
    'name',
    [
        'queue',
        'blocks.0.attn.k_bias',
        'norm.running_mean',
        'region_dec_blocks.0.cross_attn.q.weight',  # not of an expansion
        'lm_head.weight',
    ],
)
def test_unknown_names_are_listed(name):
    state = dict.fromkeys(('cls_token', name), torch.ones(1))
    with pytest.raises(CheckpointError) as caught:
        convert_state_dict('rmae', state)
    assert str(caught.value).startswith(
        'These are not names of a released R-MAE model: '
        f'{name}. Expected cls_token'
    )


def test_file_in_our_format_is_recognised():
    with pytest.raises(CheckpointError, match="in this project's format"):
        convert_state_dict('rmae', {'backbone.cls_token': torch.ones(1)})


def test_a_classifier():
    """No released code fine-tunes; names are those of the kin."""
    names = ('cls_token', 'fc_norm.weight', 'head.weight', 'head.bias')
    converted = convert_state_dict('rmae', dict.fromkeys(names, torch.ones(1)))
    assert list(converted) == [
        'backbone.cls_token',
        'backbone.ln2.weight',
        'head.fc.weight',
        'head.fc.bias',
    ]
