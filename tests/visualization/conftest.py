"""Tiny ROPIM models and images to show them."""

import numpy as np
import pytest
import torch
from mmpretrain.models.utils import SelfSupDataPreprocessor

from ropim_mm.models import ROPIM


@pytest.fixture
def make_model():
    """Build a ROPIM with 4 x 6 patches of 4 x 8 pixels."""

    def make(channels=3, normalize=True, **kwargs):
        torch.manual_seed(0)
        arch = dict(
            embed_dims=16,
            num_layers=2,
            num_heads=2,
            feedforward_channels=32,
        )
        mean = [100.0, 110.0, 120.0][:channels]
        std = [50.0, 60.0, 70.0][:channels]
        model = ROPIM(
            backbone=dict(
                type='ropim_mm.ROPIMViT',
                arch=arch,
                img_size=(16, 48),
                patch_size=(4, 8),
                in_channels=channels,
                drop_path_rate=0.5,
                out_type='raw',
                final_norm=True,
                use_rel_pos_bias=False,
                use_shared_rel_pos_bias=True,
            ),
            neck=dict(
                type='ropim_mm.ROPIMNeck',
                embed_dims=16,
                patch_size=(4, 8),
                out_channels=channels,
            ),
            head=dict(type='ropim_mm.ROPIMHead', patch_size=(4, 8)),
            data_preprocessor=SelfSupDataPreprocessor(mean=mean, std=std)
            if normalize
            else SelfSupDataPreprocessor(),
            **kwargs,
        )
        model.init_weights()
        return model

    return make


@pytest.fixture
def pictures():
    """Two colour images of the model's size, (16, 48, 3) uint8."""
    random = np.random.default_rng(0)
    return [
        random.integers(0, 256, (16, 48, 3), dtype=np.uint8) for _ in range(2)
    ]
