"""The peers are what they are said to be: ROPIM without its projection."""

import pytest
import torch
from mmpretrain.registry import MODELS

from ropim_mm.engine import launch

NAME = 'vit-base-p16_8xb128-amp-coslr-300e_in1k.py'


@pytest.fixture(scope='module')
def load(request):
    root = request.config.rootpath / 'configs'
    return lambda name: launch.load_config(str(root / name))


def shapes(cfg):
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def test_simmim_peer_has_the_same_network(load):
    ours = load(f'ropim/ropim_{NAME}')
    peer = load(f'peers/beit-simmim_{NAME}')
    assert shapes(peer) == {
        **shapes(ours),
        'backbone.mask_token': (1, 1, 768),
    }
    for field in ('drop_path_rate', 'layer_scale_init_value', 'final_norm'):
        assert peer.model.backbone[field] == ours.model.backbone[field]


@pytest.mark.parametrize('peer', ['beit-simmim', 'mae'])
def test_all_but_the_model_is_shared(load, peer):
    ours, other = load(f'ropim/ropim_{NAME}'), load(f'peers/{peer}_{NAME}')
    assert other.optim_wrapper == ours.optim_wrapper
    assert other.param_scheduler == ours.param_scheduler
    assert other.data_preprocessor == ours.data_preprocessor
    pipelines = [
        [step for step in cfg.train_dataloader.dataset.pipeline
         if step.type != 'SimMIMMaskGenerator']
        for cfg in (ours, other)
    ]  # fmt: skip
    assert pipelines[0] == pipelines[1]


def test_tokens_become_a_map(load):
    cfg = load(f'peers/beit-simmim_{NAME}')
    arch = dict(
        embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=16
    )
    cfg.model.backbone.update(arch=arch, img_size=(16, 24), patch_size=8)
    encoder = MODELS.build(cfg.model.backbone)
    encoder.eval()
    images = torch.randn(2, 3, 16, 24)
    mask = torch.tensor([[[1, 0, 0], [0, 1, 1]]] * 2)
    (features,) = encoder(images, mask)
    (tokens,) = super(type(encoder), encoder).forward(images, mask)
    assert features.shape == (2, 16, 2, 3)
    assert torch.equal(features[1, :, 1, 2], tokens[1, 1 + 5])
    (plain,) = encoder(images, None)
    assert plain.shape == (2, 7, 16)
