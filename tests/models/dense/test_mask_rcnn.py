"""The detector in mixed precision: what is float32, what is not."""

import copy

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

import tiny_coco
from config_checks import load
from ropim_mm.stack import StackError
from tiny_coco import needs_operators

NAME = 'rmae/benchmarks/mask-rcnn_vit-base-p16_lsj-100e_coco.py'


@pytest.fixture
def setting(tmp_path):
    """A detector's config, and a batch of two pictures."""
    cfg = load(NAME)
    tiny_coco.shrink(cfg, tiny_coco.write(tmp_path))
    cfg.model.backbone.update(init_cfg=None, drop_path_rate=0.0)
    dataset = cfg.val_dataloader.dataset
    with DefaultScope.overwrite_default_scope('mmdet'):
        from mmdet.registry import DATASETS

        # Resized with their masks, unlike in the test pipeline.
        dataset.pipeline.insert(1, dataset.pipeline.pop(2))
        packed = [DATASETS.build(dataset)[i] for i in (0, 2)]
        yield cfg, {k: [p[k] for p in packed] for k in packed[0]}


def build(model, kind='ropim_mm.MaskRCNN'):
    torch.manual_seed(0)
    detector = MODELS.build(dict(copy.deepcopy(model), type=kind))
    detector.init_weights()
    return detector


def losses(detector, batch):
    torch.manual_seed(0)  # of the samplers of boxes
    data = detector.data_preprocessor(copy.deepcopy(batch), training=True)
    parsed, values = detector.parse_losses(
        detector.loss(data['inputs'], data['data_samples'])
    )
    parsed.backward()
    return {k: v.detach() for k, v in values.items()}


def note_types(detector):
    """Which types go into and come out of each of its layers, by name."""
    types = {}

    def note(name):
        def hook(module, inputs, output):
            tensors = [x for x in (*inputs, output) if torch.is_tensor(x)]
            types.setdefault(name, set()).update(x.dtype for x in tensors)

        return hook

    for name, module in detector.named_modules():
        module.register_forward_hook(note(name))
    return types


@needs_operators
def test_networks_are_bfloat16_and_boxes_float32(setting):
    cfg, batch = setting
    detector = build(cfg.model)
    types = note_types(detector)
    with torch.autocast('cpu', torch.bfloat16):
        values = losses(detector, batch)
    single, half = torch.float32, torch.bfloat16
    for name in (
        'backbone.layers.1.ffn.layers.1',
        'neck.outputs.0.2',
        'rpn_head.rpn_conv.1.conv',
        'roi_head.bbox_head.shared_convs.3.conv',
        'roi_head.mask_head.convs.3.conv',
        'roi_head.mask_head.upsample',
    ):
        assert half in types[name], name
    for level in range(4):
        for kind in ('bbox', 'mask'):
            name = f'roi_head.{kind}_roi_extractor.roi_layers.{level}'
            assert types.get(name, {single}) == {single}
    assert types['roi_head.bbox_head.loss_cls'] <= {single, torch.int64}
    assert types['rpn_head.loss_bbox'] == {single}
    assert types['roi_head.mask_head.loss_mask'] <= {single, torch.int64}
    assert {v.dtype for v in values.values()} == {single}
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad and 'mask_head.conv_logits' not in name:
            assert parameter.grad is not None, name


@needs_operators
def test_corners_keep_their_places(setting):
    """1023 is 1024 in bfloat16; so are anchors' and regions' corners."""
    cfg, batch = setting
    detector = build(cfg.model)
    found = []
    anchors = detector.rpn_head.prior_generator.grid_priors

    def grid_priors(*args, **kwargs):
        found.append(kwargs['dtype'])
        return anchors(*args, **kwargs)

    detector.rpn_head.prior_generator.grid_priors = grid_priors
    detector.eval()
    with torch.autocast('cpu', torch.bfloat16), torch.no_grad():
        results = detector.test_step(batch)
    assert found == [torch.float32]
    for result in results:
        boxes = result.pred_instances.bboxes
        assert len(boxes) == 10
        assert boxes.dtype == torch.float32
        assert not torch.equal(boxes, boxes.bfloat16().float())


@needs_operators
def test_without_autocast_it_is_mmdetections(setting):
    cfg, batch = setting
    ours, theirs = build(cfg.model), build(cfg.model, 'mmdet.MaskRCNN')
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(ours.state_dict())
    mine, reference = losses(ours, batch), losses(theirs, batch)
    assert mine.keys() == reference.keys()
    for name, value in mine.items():
        assert torch.equal(value, reference[name]), name
    for detector in (ours, theirs):
        detector.eval()
    with torch.no_grad():
        mine, reference = (d.test_step(batch) for d in (ours, theirs))
    for a, b in zip(mine, reference, strict=True):
        assert torch.equal(a.pred_instances.bboxes, b.pred_instances.bboxes)
        assert torch.equal(a.pred_instances.masks, b.pred_instances.masks)


def test_operators_that_are_not_there(monkeypatch):
    """The first to be asked for a detector says what to install."""
    from ropim_mm import stack

    def refuse():
        raise StackError('operators')

    monkeypatch.setattr(stack, 'require_detection', refuse)
    with pytest.raises(StackError, match='operators'):
        MODELS.build(dict(type='ropim_mm.MaskRCNN'))


@pytest.mark.gpu
@needs_operators
def test_a_step_on_the_gpu(setting):
    cfg, batch = setting
    detector = build(cfg.model)
    on_cpu = losses(detector, batch)
    detector = build(cfg.model).cuda()
    on_gpu = losses(detector, batch)
    # Boxes are sampled at random, and differently on each device; all that
    # is before is not.
    for name in ('loss_rpn_cls', 'loss_rpn_bbox'):
        torch.testing.assert_close(
            on_gpu[name].cpu(), on_cpu[name], rtol=1e-3, atol=1e-4
        )
    detector.zero_grad()
    with torch.autocast('cuda', torch.bfloat16):
        values = losses(detector, batch)
    assert all(torch.isfinite(value) for value in values.values())
