"""What every method does alike."""

import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

import tiny_models
from ropim_mm.checkpoints import load_weights
from ropim_mm.errors import InputError
from ropim_mm.models.layers.patches import to_pair
from tiny_models import METHODS, batch, build, encoder, loss_of

# (height, width) of images, and of patches.
SHAPES = {
    'square': ((32, 32), 8),
    'wide': ((32, 48), 8),
    'tall, odd grid': ((56, 24), 8),
    'wide patches': ((32, 48), (8, 16)),
    'tall patches': ((48, 24), (12, 6)),
}
shapes = pytest.mark.parametrize('shape', SHAPES)
methods = pytest.mark.parametrize('method', METHODS)


def gradients(model) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def with_draws(method, model, inputs, samples):
    """Samples that fix every random decision, as section 3 of the contract
    of the methods names them."""
    image = inputs[0] if isinstance(inputs, list) else inputs
    patch = model.backbone.patch_size
    rows, columns = (
        side // p for side, p in zip(image.shape[2:], patch, strict=True)
    )
    length = rows * columns
    generator = torch.Generator().manual_seed(7)

    def below(high, *shape):
        return torch.randint(high, shape, generator=generator)

    given = []
    for sample in samples:
        sample = sample.clone()
        if method == 'ropim':
            sample.set_field(below(3, length), 'sketch_hash')
            sample.set_field(below(2, length) * 2.0 - 1, 'sketch_sign')
        elif method == 'lomar':
            sample.set_field(below(rows - 1, 2), 'window_tops')
            sample.set_field(below(columns - 1, 2), 'window_lefts')
            mask = torch.zeros(2, 4, dtype=torch.bool)
            mask[:, [0, 2, 3]] = True
            sample.set_field(mask, 'window_mask')
        elif method == 'rmae':
            order = torch.randperm(length, generator=generator)
            sample.set_field(order, 'shuffle_ids')
        else:
            mask = torch.zeros(length, dtype=torch.bool)
            mask[: length // 2] = True
            sample.set_field(mask.view(rows, columns), 'mask')
        given.append(sample)
    return inputs, given


@methods
@shapes
@pytest.mark.parametrize('channels', [1, 3, 5])
def test_any_image(method, shape, channels):
    """Loss and all gradients, for grids, patches and channels of any kind."""
    size, patch = SHAPES[shape]
    model = build(
        method, img_size=size, patch_size=patch, in_channels=channels
    )
    loss = loss_of(model, *batch(model, 2, size))
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    loss.backward()
    assert torch.isfinite(loss) and loss > 0
    grads = gradients(model)
    assert grads
    for name, grad in grads.items():
        assert grad is not None, f'{name} has no gradient'
        assert torch.isfinite(grad).all(), name
        assert grad.any(), f'the gradient of {name} is 0'


@methods
def test_other_sizes_at_run_time(method):
    """Trained at one size, run at another: positions are resized."""
    model = build(method, img_size=32)
    for size in ((48, 32), (40, 64)):
        loss = loss_of(model, *batch(model, 2, size))
        loss.backward()
        assert torch.isfinite(loss)


@methods
def test_autocast_in_bfloat16(method):
    model = build(method)
    data = batch(model)
    losses = {}
    for enabled in (False, True):
        torch.manual_seed(0)
        model.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            loss = loss_of(model, *data)
        loss.backward()
        assert loss.dtype == torch.float32
        losses[enabled] = loss.item()
        for name, grad in gradients(model).items():
            assert grad.dtype == torch.float32
            assert torch.isfinite(grad).all(), name
    assert losses[True] == pytest.approx(losses[False], rel=0.03)
    assert losses[True] != losses[False]


@methods
def test_replay_gives_the_same_numbers(method):
    model = build(method, img_size=(32, 48))
    inputs, samples = batch(model, 3, (32, 48))
    drawn = with_draws(method, model, inputs, samples)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = model.loss(*drawn)
    assert torch.equal(torch.random.get_rng_state(), before)  # none drawn
    torch.manual_seed(2)
    again = model.loss(*drawn)
    assert first.keys() == again.keys()
    for name in first:
        assert torch.equal(first[name], again[name])
    # Without the fields, other draws and other numbers.
    losses = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        losses.add(loss_of(model, inputs, samples).item())
    assert len(losses) == 2


@methods
def test_images_do_not_see_each_other(method):
    """The loss of a batch is the mean of its images', each with its draws.

    In evaluation: ConMIM's BatchNorm sees the batch in training.
    """
    model = build(method).eval()
    inputs, samples = with_draws(method, model, *batch(model, 3))
    whole = loss_of(model, inputs, samples)
    single = []
    for i in range(3):
        one = (
            [view[i : i + 1] for view in inputs]
            if isinstance(inputs, list)
            else inputs[i : i + 1]
        )
        single.append(loss_of(model, one, samples[i : i + 1]))
    torch.testing.assert_close(whole, torch.stack(single).mean())


@methods
def test_compiles_in_one_graph(method):
    """No break, so nothing in a step waits for the device or for Python."""
    torch.compiler.reset()
    model = build(method)
    data = with_draws(method, model, *batch(model))
    eager = model.loss(*data)

    @torch.compile(backend='eager', fullgraph=True)
    def step(*data):
        return model.loss(*data)

    compiled = step(*data)
    for name, loss in eager.items():
        torch.testing.assert_close(compiled[name], loss, rtol=1e-5, atol=1e-6)
    sum(compiled.values()).backward()
    assert all(grad is not None for grad in gradients(model).values())


@pytest.mark.gpu
@methods
@pytest.mark.parametrize('half', [False, True])
def test_no_step_waits_for_the_device(method, half):
    model = build(method).cuda()
    data = batch(model, device='cuda')
    loss_of(model, *data).backward()  # what is made once is made
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        with torch.autocast('cuda', torch.bfloat16, enabled=half):
            loss = loss_of(model, *data)
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert torch.isfinite(loss)


@pytest.mark.gpu
@methods
def test_devices_agree(method):
    model = build(method).eval()
    data = with_draws(method, model, *batch(model))
    on_cpu = loss_of(model, *data)
    inputs, samples = data
    inputs = (
        [view.cuda() for view in inputs]
        if isinstance(inputs, list)
        else inputs.cuda()
    )
    on_gpu = loss_of(model.cuda(), inputs, [s.cuda() for s in samples])
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-4, atol=1e-5)


# --- as ordinary backbones ---------------------------------------------------


@methods
@shapes
@pytest.mark.parametrize(
    'out_type', ['raw', 'cls_token', 'featmap', 'avg_featmap']
)
def test_outputs(method, shape, out_type):
    size, patch = SHAPES[shape]
    backbone = encoder(
        method,
        img_size=size,
        patch_size=patch,
        in_channels=2,
        out_type=out_type,
        out_indices=(0, -1),
    ).eval()
    for height, width in (size, (size[0] * 2, size[1])):
        grid = tuple(
            s // p
            for s, p in zip((height, width), to_pair(patch), strict=True)
        )
        with torch.no_grad():
            outs = backbone(torch.randn(2, 2, height, width))
        length = grid[0] * grid[1]
        expected = dict(
            raw=(2, 1 + length, 16),
            cls_token=(2, 16),
            featmap=(2, 16, *grid),
            avg_featmap=(2, 16),
        )[out_type]
        assert isinstance(outs, tuple)
        assert [tuple(out.shape) for out in outs] == [expected] * 2
        assert not torch.equal(*outs)


@methods
def test_feature_maps_are_the_tokens_in_their_places(method):
    images = torch.randn(1, 3, 32, 48)
    outs = {}
    for out_type in ('raw', 'cls_token', 'featmap', 'avg_featmap'):
        torch.manual_seed(0)
        backbone = encoder(
            method, img_size=(32, 48), out_type=out_type, final_norm=True
        ).eval()
        outs[out_type] = backbone(images)[0]
    tokens = outs['raw']
    assert torch.equal(outs['cls_token'], tokens[:, 0])
    assert torch.equal(outs['featmap'][0, :, 1, 2], tokens[0, 1 + 6 + 2])
    pooled = backbone.ln2(tokens[:, 1:].mean(1))
    torch.testing.assert_close(outs['avg_featmap'], pooled)


@methods
@pytest.mark.parametrize('kind', ['classifier', 'feature maps'])
def test_a_pretrained_encoder_goes_on(method, kind, tmp_path):
    """By ``init_cfg``, as a config names it, in a model of another kind."""
    model = build(method)
    path = tmp_path / 'epoch_1.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    prefix = 'momentum.backbone.' if method == 'conmim' else 'backbone.'
    settings = dict(
        init_cfg=dict(type='Pretrained', checkpoint=str(path), prefix=prefix)
    )
    weight = model.state_dict()[f'{prefix}patch_embed.projection.weight']
    if kind == 'feature maps':
        # At another size, as segmentation and detection need it.
        backbone = encoder(
            method,
            img_size=64,
            out_type='featmap',
            out_indices=(0, 1),
            final_norm=False,
            **settings,
        )
        maps = backbone(torch.randn(2, 3, 64, 96))
        assert [tuple(m.shape) for m in maps] == [(2, 16, 8, 12)] * 2
    else:
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            classifier = MODELS.build(
                dict(
                    type='ImageClassifier',
                    backbone=dict(
                        type=f'ropim_mm.{tiny_models.ENCODERS[method]}',
                        arch=tiny_models.ARCH,
                        img_size=32,
                        patch_size=8,
                        out_type='avg_featmap',
                        final_norm=False,
                        **settings,
                    ),
                    head=dict(
                        type='LinearClsHead', num_classes=3, in_channels=16
                    ),
                )
            )
        classifier.init_weights()
        backbone = classifier.backbone
        labels = [DataSample().set_gt_label(i) for i in range(2)]
        losses = classifier.loss(torch.randn(2, 3, 32, 32), labels)
        losses['loss'].backward()
        assert backbone.layers[0].attn.qkv.weight.grad.any()
    assert torch.equal(backbone.patch_embed.projection.weight, weight)


@methods
@pytest.mark.parametrize('framework', ['mmpretrain', 'mmseg', 'mmdet'])
def test_every_framework_builds_the_encoder(method, framework, tmp_path):
    registry = pytest.importorskip(f'{framework}.registry').MODELS
    if framework == 'mmdet':
        # MMDetection needs MMCV's compiled operators.
        pytest.importorskip('mmcv._ext')
    model = build(method)
    path = tmp_path / 'epoch_1.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    with DefaultScope.overwrite_default_scope(framework):
        backbone = registry.build(
            dict(
                type=f'ropim_mm.{tiny_models.ENCODERS[method]}',
                arch=tiny_models.ARCH,
                img_size=32,
                patch_size=8,
                out_type='featmap',
                out_indices=(0, 1),
                final_norm=False,
                init_cfg=dict(
                    type='Pretrained',
                    checkpoint=str(path),
                    prefix='backbone.',
                ),
            )
        )
        backbone.init_weights()
    assert torch.equal(backbone.cls_token, model.backbone.cls_token)
    maps = backbone(torch.randn(1, 3, 24, 40))
    assert [tuple(m.shape) for m in maps] == [(1, 16, 3, 5)] * 2


@pytest.mark.parametrize('method', tiny_models.IN_MMPRETRAIN)
def test_mmpretrain_has_the_same_names_and_numbers(method):
    """Every encoder tensor matches MMPretrain's own encoder, both ways."""
    model = build(method).eval()
    kind = tiny_models.IN_MMPRETRAIN[method]
    options = dict(arch=tiny_models.ARCH, img_size=32, patch_size=8)
    if kind == 'BEiTViT':
        options.update(tiny_models.BEIT, use_abs_pos_emb=False)
    else:
        options.update(out_type='raw')
    theirs = MODELS.build(dict(type=f'mmpretrain.{kind}', **options))
    theirs.eval()
    state = model.backbone.state_dict()
    state.pop('mask_token', None)
    assert set(theirs.state_dict()) == set(state)
    theirs.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        ours = model.backbone(images)[0]
        torch.testing.assert_close(
            ours, theirs(images)[0], rtol=1e-5, atol=1e-5
        )
    # And theirs in ours.
    settings = tiny_models.BEIT if kind == 'BEiTViT' else dict(out_type='raw')
    back = encoder(method, **settings).eval()
    report = load_weights(back, theirs.state_dict(), source='theirs')
    assert report.complete
    with torch.no_grad():
        assert torch.equal(back(images)[0], ours)


@methods
def test_layer_decay_knows_every_parameter(method):
    backbone = encoder(method, out_type='avg_featmap', final_norm=False)
    depths = {
        name: backbone.get_layer_depth(f'backbone.{name}', 'backbone.')
        for name, _ in backbone.named_parameters()
    }
    assert {last for _, last in depths.values()} == {4}
    for name, (depth, _) in depths.items():
        expected = 3
        if name.startswith('layers.'):
            expected = 1 + int(name.split('.')[1])
        elif name.split('.')[0] in ('patch_embed', 'cls_token', 'pos_embed'):
            expected = 0
        assert depth == expected, name


@methods
def test_size_that_is_no_multiple_of_the_patch(method):
    model = build(method)
    with pytest.raises(
        InputError, match=r'image size 36x32 .* not a multiple of patch_size'
    ):
        loss_of(model, *batch(model, 2, (36, 32)))


@methods
def test_an_encoder_alone_is_deterministic(method):
    """In evaluation, whatever is dropped in training."""
    rates = dict(drop_rate=0.5, drop_path_rate=0.5)
    backbone = encoder(method, **rates)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert not torch.equal(backbone(images)[0], backbone(images)[0])
        backbone.eval()
        assert torch.equal(backbone(images)[0], backbone(images)[0])
