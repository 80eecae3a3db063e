"""Mask R-CNN around MIMDet: what its backbone is shown, and in which type."""

import sys

import pytest
import torch

import tiny_coco
from config_checks import load
from ropim_mm.models import build_mimdet_mask_rcnn
from ropim_mm.stack import StackError
from tiny_coco import needs_operators
from tiny_mimdet import build, dataset, shrink

NAME = 'conmim/benchmarks/mask-rcnn_mimdet-vit-base-p16_ms-36e_coco.py'


@pytest.fixture
def tiny(tmp_path):
    """A tiny detector with random weights, and a batch of two sizes."""
    cfg = load(NAME)
    shrink(cfg, tiny_coco.write(tmp_path))
    cfg.model.backbone.init_cfg = None
    for part in (cfg.model.neck, *cfg.model.roi_head.values()):
        if 'norm_cfg' in part:
            part.norm_cfg = dict(type='BN')
    torch.manual_seed(0)
    model = build(cfg)
    model.init_weights()
    data = dataset(cfg, 'val_dataloader')
    packed = [data[i] for i in (0, 1)]  # 48 x 64 and 64 x 40 pixels
    batch = dict(
        inputs=[p['inputs'] for p in packed],
        data_samples=[p['data_samples'] for p in packed],
    )
    batch = model.data_preprocessor(batch, training=True)
    return model, batch['inputs'], batch['data_samples']


@needs_operators
def test_the_backbone_is_shown_the_samples(tiny):
    model, inputs, samples = tiny
    seen = []
    model.backbone.register_forward_hook(
        lambda _, args, outs: seen.append(args)
    )
    losses = model(inputs, samples, 'loss')
    assert {'loss_rpn_cls', 'loss_rpn_bbox', 'loss_bbox', 'loss_mask'} <= set(
        losses
    )
    model.eval()
    with torch.no_grad():
        predicted = model(inputs, samples, 'predict')
        model(inputs, samples, 'tensor')
        model.extract_feat(inputs)
    assert len(predicted) == 2
    assert predicted[0].pred_instances.masks.shape[1:] == (48, 64)
    assert [args[1] for args in seen] == [samples] * 3 + [None]
    assert all(args[0] is inputs for args in seen)


@needs_operators
def test_replay(tiny):
    """Tokens from outside: the same losses, whatever the seed."""
    model, inputs, samples = tiny
    levels = []
    for ids in ([0, 3, 5], [0, 3, 5], [0, 3, 6]):
        for sample in samples:
            sample.set_field(torch.tensor(ids), 'visible_ids')
        levels.append(model.extract_feat((inputs, samples))[2])
    assert torch.equal(levels[0], levels[1])
    assert not torch.equal(levels[0], levels[2])


@needs_operators
def test_corners_are_not_rounded(tiny):
    """In bfloat16 there are only multiples of 4 between 512 and 1024."""
    model, inputs, samples = tiny
    wide = torch.zeros(2, 3, 64, 1312)
    for sample in samples:
        sample.set_metainfo(dict(img_shape=(64, 1312), scale_factor=(1, 1)))
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        levels = model.extract_feat(wide)
        assert {level.dtype for level in levels} == {torch.float32}
        outs = model.rpn_head(levels)
        found = model.rpn_head.predict(levels, samples, rescale=False)
    assert {m.dtype for maps in outs for m in maps} == {torch.float32}
    corners = torch.cat([f.bboxes for f in found]).flatten()
    assert corners.dtype == torch.float32
    far = corners[(corners > 512) & (corners < 1312)]
    assert len(far) > 100
    assert (far != far.bfloat16().float()).float().mean() > 0.9


def test_without_operators(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv._ext', None)
    with pytest.raises(StackError, match='`make detection` builds them'):
        build_mimdet_mask_rcnn()
