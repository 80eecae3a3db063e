"""Names of the released LoMaR models, one for one but for the positions."""

import numpy as np
import pytest
import torch

from ropim_mm.checkpoints import CheckpointError
from ropim_mm.checkpoints.exporting import convert_official
from ropim_mm.checkpoints.official import convert_state_dict, dropped_names
from ropim_mm.models import LoMaRNeck, LoMaRViT


@pytest.fixture(scope='module')
def stored(shared):
    def load(case):
        path = shared / 'parity' / 'lomar' / f'{case}.npz'
        with np.load(path, allow_pickle=False) as file:
            return {
                name.removeprefix('state/'): torch.from_numpy(file[name])
                for name in file.files
                if name.startswith('state/')
            }

    return load


def arch(dims):
    return dict(
        embed_dims=dims,
        num_layers=2,
        num_heads=4,
        feedforward_channels=4 * dims,
    )


@pytest.mark.parametrize(
    ('case', 'dims', 'patch'),
    [('pretrain_w4_n2_b3_img128', 64, 16), ('pretrain_w7_n2_b3', 32, 8)],
)
def test_pretraining_model_is_ours(stored, case, dims, patch):
    state = stored(case)
    converted = convert_state_dict('lomar', state)
    assert dropped_names('lomar', state) == ['pos_embed']
    model = torch.nn.ModuleDict(
        dict(
            backbone=LoMaRViT(
                arch=arch(dims),
                patch_size=patch,
                out_type='raw',
                final_norm=True,
                with_mask_token=True,
            ),
            neck=LoMaRNeck(dims, patch),
        )
    )
    own = model.state_dict()
    assert set(converted) == set(own)
    for name, tensor in converted.items():
        assert tensor.shape == own[name].shape, name
    # The very same tensors, none twice.
    kept = {id(t) for n, t in state.items() if n != 'pos_embed'}
    assert {id(t) for t in converted.values()} == kept


@pytest.mark.parametrize(
    ('case', 'patch', 'options'),
    [
        ('finetune_gap_128', 16, dict(out_type='avg_featmap')),
        ('finetune_cls_64', 8, dict(out_type='cls_token', final_norm=True)),
    ],
)
def test_fine_tuned_model_is_ours(stored, case, patch, options):
    state = stored(case)
    converted = convert_state_dict('lomar', state)
    own = LoMaRViT(arch=arch(32), patch_size=patch, **options).state_dict()
    head = {'head.fc.weight', 'head.fc.bias'}
    assert set(converted) == {f'backbone.{name}' for name in own} | head
    norm, released = (
        ('ln2', 'fc_norm') if 'ln2.weight' in own else ('ln1', 'norm')
    )
    assert torch.equal(
        converted[f'backbone.{norm}.weight'], state[f'{released}.weight']
    )


@pytest.mark.parametrize(
    ('released', 'own'),
    [
        ('mask_token', 'backbone.mask_token'),
        ('patch_embed.proj.bias', 'backbone.patch_embed.projection.bias'),
        ('blocks.3.attn.qkv.bias', 'backbone.layers.3.attn.qkv.bias'),
        (
            'blocks.11.attn.rpe_k.lookup_table_weight',
            'backbone.layers.11.attn.rpe_k.lookup_table_weight',
        ),
        ('blocks.0.mlp.fc2.weight', 'backbone.layers.0.ffn.layers.1.weight'),
        ('norm.bias', 'backbone.ln1.bias'),
        ('encoder_pred.weight', 'neck.pred.weight'),
        ('head.bias', 'head.fc.bias'),
    ],
)
def test_names(released, own):
    tensor = torch.ones(1)
    converted = convert_state_dict('lomar', {released: tensor})
    assert list(converted) == [own]
    assert converted[own] is tensor


def test_unknown_names_are_listed():
    state = dict.fromkeys(
        ('cls_token', 'blocks.0.attn.rpe_q.lookup_table_weight', 'decoder.w'),
        torch.ones(1),
    )
    with pytest.raises(CheckpointError) as caught:
        convert_state_dict('lomar', state)
    assert str(caught.value).startswith(
        'These are not names of a released LoMaR model: '
        'blocks.0.attn.rpe_q.lookup_table_weight, decoder.w. Expected'
    )


def test_file_in_our_format_is_recognised():
    with pytest.raises(CheckpointError, match="in this project's format"):
        convert_state_dict('lomar', {'backbone.cls_token': torch.ones(1)})


def test_what_is_dropped_is_reported(stored, tmp_path):
    state = stored('pretrain_w7_n2_b3')
    torch.save(dict(model=state, epoch=3), tmp_path / 'released.pth')
    summary = convert_official(
        'lomar', tmp_path / 'released.pth', tmp_path / 'ours.pth'
    )
    assert summary.dropped == ('pos_embed',)
    assert 'pos_embed' in str(summary)
    written = torch.load(tmp_path / 'ours.pth', weights_only=True)
    assert len(written['state_dict']) == len(state) - 1
