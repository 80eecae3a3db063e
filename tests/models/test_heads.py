"""The classification head of the fine-tuning recipes."""

import pytest
import torch
from mmpretrain.models.heads import LinearClsHead as Upstream
from mmpretrain.structures import DataSample

from ropim_mm.models import LinearClsHead
from ropim_mm.registry import MODELS

LOSSES = [
    dict(type='mmpretrain.CrossEntropyLoss'),
    dict(
        type='mmpretrain.LabelSmoothLoss',
        label_smooth_val=0.1,
        mode='original',
    ),
]


@pytest.fixture
def feats():
    torch.manual_seed(0)
    return (torch.randn(6, 8),)


def labels():
    return [DataSample().set_gt_label(i % 5) for i in range(6)]


def mixed():
    scores = torch.rand(6, 5).softmax(1)
    return [DataSample().set_gt_score(score) for score in scores]


def build(cls, loss):
    torch.manual_seed(1)
    head = cls(num_classes=5, in_channels=8, loss=dict(loss))
    torch.nn.init.normal_(head.fc.weight)
    return head


@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('samples', [labels, mixed])
def test_loss_is_float32_under_autocast(feats, loss, samples):
    head, samples = build(LinearClsHead, loss), samples()
    with torch.autocast('cpu', torch.bfloat16):
        logits = head(feats)
        found = head.loss(feats, samples)['loss']
    assert logits.dtype == torch.bfloat16
    # That of the same logits, in float32 and outside of autocast.
    expected = head._get_loss(logits.float(), samples)['loss']
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize('loss', LOSSES)
def test_otherwise_as_upstream(feats, loss):
    ours, theirs = build(LinearClsHead, loss), build(Upstream, loss)
    assert list(ours.state_dict()) == ['fc.weight', 'fc.bias']
    theirs.load_state_dict(ours.state_dict())
    expected = theirs.loss(feats, labels())['loss']
    assert torch.equal(ours.loss(feats, labels())['loss'], expected)


def test_registered():
    head = MODELS.build(
        dict(type='ropim_mm.LinearClsHead', num_classes=2, in_channels=3)
    )
    assert type(head) is LinearClsHead
