"""BEiT's names and ours correspond one to one."""

import pytest

from ropim_mm.checkpoints.beit_names import ARCHS, from_beit, to_beit
from ropim_mm.models import ROPIMViT

ARCH = dict(embed_dims=8, num_layers=2, num_heads=2, feedforward_channels=16)


def test_names_of_sizes_are_those_of_the_models():
    assert ROPIMViT.arch_zoo == ARCHS


@pytest.mark.parametrize('one_table', [True, False])
def test_every_tensor_there_and_back(one_table):
    names = ROPIMViT(
        arch=ARCH,
        img_size=32,
        final_norm=True,
        use_abs_pos_emb=True,
        use_rel_pos_bias=not one_table,
        use_shared_rel_pos_bias=one_table,
    ).state_dict()
    theirs = [to_beit(name) for name in names]
    assert None not in theirs
    assert len(set(theirs)) == len(names)
    assert [from_beit(name) for name in theirs] == list(names)


@pytest.mark.parametrize(
    'name', ['layers.0.attn.k_bias', 'layers.x.gamma_1', 'head.fc.bias', '']
)
def test_unknown_names(name):
    assert to_beit(name) is None
    assert from_beit(name) is None
