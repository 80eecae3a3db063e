"""SampleSketch: balance, randomness and reproducibility."""

import pytest
import torch
from mmengine.dataset import default_collate

from ropim_mm.datasets import SampleSketch
from ropim_mm.errors import InputError
from ropim_mm.registry import TRANSFORMS


@pytest.mark.parametrize('grid', [14, (7, 7), (3, 5)])
@pytest.mark.parametrize('ratio', [0.14, 0.5])
def test_buckets_and_signs_are_balanced(grid, ratio):
    step = SampleSketch(grid, ratio)
    h, w = (grid, grid) if isinstance(grid, int) else grid
    out = step({})
    assert out['sketch_hash'].dtype == torch.int64
    assert out['sketch_hash'].shape == out['sketch_sign'].shape == (h * w,)
    counts = out['sketch_hash'].bincount(minlength=step.size)
    assert len(counts) == step.size
    assert counts.max() - counts.min() <= 1
    assert set(out['sketch_sign'].tolist()) == {-1.0, 1.0}
    assert abs(out['sketch_sign'].sum().item()) == (h * w) % 2


def test_every_bucket_and_sign_is_equally_likely():
    torch.manual_seed(0)
    step = SampleSketch((2, 4), 0.5)  # 8 tokens, 4 buckets
    draws = [step({}) for _ in range(2000)]
    hashes = torch.stack([d['sketch_hash'] for d in draws])
    share = torch.stack([(hashes == k).float().mean(0) for k in range(4)])
    # Standard deviation 0.0097; 5 of them.
    assert (share - 0.25).abs().max() < 0.05
    signs = torch.stack([d['sketch_sign'] for d in draws])
    assert signs.mean(0).abs().max() < 5 / 2000**0.5
    # Tokens of one chunk never share a bucket, of two they do by chance.
    assert (hashes[:, 0] != hashes[:, 1]).all()
    assert abs((hashes[:, 0] == hashes[:, 4]).float().mean() - 0.25) < 0.05


def test_a_seed_ties_the_sketch_to_the_image():
    step = SampleSketch(14, seed=3)
    torch.manual_seed(0)
    first = [step(dict(sample_idx=i)) for i in range(3)]
    torch.manual_seed(1)
    again = [step(dict(sample_idx=i)) for i in reversed(range(3))][::-1]
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a['sketch_hash'], b['sketch_hash'])
        assert torch.equal(a['sketch_sign'], b['sketch_sign'])
    assert not torch.equal(first[0]['sketch_hash'], first[1]['sketch_hash'])
    other = SampleSketch(14, seed=4)(dict(sample_idx=0))
    assert not torch.equal(first[0]['sketch_hash'], other['sketch_hash'])


def test_without_a_seed_it_changes():
    step = SampleSketch(14)
    assert not torch.equal(step({})['sketch_hash'], step({})['sketch_hash'])


def test_bad_arguments():
    with pytest.raises(InputError, match='needs the field sample_idx'):
        SampleSketch(4, seed=0)({})
    with pytest.raises(ValueError, match='sketch_ratio is 1.0'):
        SampleSketch(4, 1.0)


def test_the_fields_reach_the_model():
    from mmpretrain.registry import MODELS

    import ropim_mm  # noqa: F401

    steps = [
        TRANSFORMS.build(dict(type='ropim_mm.SampleSketch', grid=2, seed=0)),
        TRANSFORMS.build(
            dict(
                type='mmpretrain.PackInputs',
                algorithm_keys=('sketch_hash', 'sketch_sign'),
            )
        ),
    ]
    samples = []
    for i in range(2):
        results = dict(
            img=torch.full((8, 8, 3), i, dtype=torch.uint8).numpy(),
            sample_idx=i,
        )
        for step in steps:
            results = step(results)
        samples.append(results)
    batch = default_collate(samples)
    arch = dict(
        embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=16
    )
    model = MODELS.build(
        dict(
            type='ropim_mm.ROPIM',
            backbone=dict(
                type='ropim_mm.ROPIMViT',
                arch=arch,
                img_size=8,
                patch_size=4,
                out_type='raw',
                final_norm=True,
                use_rel_pos_bias=False,
                use_shared_rel_pos_bias=True,
            ),
            neck=dict(type='ropim_mm.ROPIMNeck', embed_dims=16, patch_size=4),
            head=dict(type='ropim_mm.ROPIMHead', patch_size=4),
        )
    )
    data = model.data_preprocessor(batch)
    losses = [model(**data, mode='loss')['loss'].item() for _ in range(2)]
    assert losses[0] == losses[1]
