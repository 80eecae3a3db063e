import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch.utils.flop_counter import FlopCounterMode

from ropim_mm.errors import InputError
from ropim_mm.models.layers.patches import patchify
from ropim_mm.models.layers.windows import window_patches

ARCH = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
SIZE, WINDOW, WINDOWS = (24, 32), 3, 3


def config(size=SIZE, patch=4, channels=3, layers=2, **kwargs):
    settings = dict(
        type='ropim_mm.LoMaR',
        backbone=dict(
            type='ropim_mm.LoMaRViT',
            arch=dict(ARCH, num_layers=layers),
            img_size=size,
            patch_size=patch,
            in_channels=channels,
            out_type='raw',
            final_norm=True,
            with_mask_token=True,
        ),
        neck=dict(
            type='ropim_mm.LoMaRNeck',
            embed_dims=16,
            patch_size=patch,
            out_channels=channels,
        ),
        head=dict(type='ropim_mm.LoMaRHead'),
        window_size=WINDOW,
        num_windows=WINDOWS,
        mask_ratio=0.7,
    )
    return settings | kwargs


def build(**kwargs):
    torch.manual_seed(0)
    model = MODELS.build(config(**kwargs))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def given(batch=2, grid=(6, 8), windows=WINDOWS, masked=(6,)):
    """Windows of each image and masks with these numbers of patches."""
    torch.manual_seed(1)
    tops = torch.randint(grid[0] - WINDOW + 1, (batch, windows))
    lefts = torch.randint(grid[1] - WINDOW + 1, (batch, windows))
    order = torch.rand(batch, windows, WINDOW**2).argsort(-1)
    counts = torch.tensor(masked).repeat(batch * windows)[: batch * windows]
    mask = order < counts.view(batch, windows, 1)
    return tops, lefts, mask


def samples(tops, lefts, mask):
    result = []
    fields = zip(tops, lefts, mask, strict=True)
    for top, left, hidden in fields:
        sample = DataSample()
        sample.set_field(top, 'window_tops')
        sample.set_field(left, 'window_lefts')
        sample.set_field(hidden, 'window_mask')
        result.append(sample)
    return result


def equation(model, images, tops, lefts, mask, normalised=True):
    """Window by window, patch by patch."""
    patch = model.backbone.patch_size
    (ph, pw), total, count = patch, 0.0, 0
    for image, own in enumerate(zip(tops, lefts, mask, strict=True)):
        for top, left, hidden in zip(*own, strict=True):
            cut = images[
                image : image + 1,
                :,
                top * ph : (top + WINDOW) * ph,
                left * pw : (left + WINDOW) * pw,
            ]

            def hide(tokens, hidden=hidden):
                tokens = tokens.clone()
                tokens[0, hidden] = model.backbone.mask_token[0, 0]
                return tokens

            # The window is an image of its own for the encoder.
            (tokens,) = model.backbone(cut, hide)
            pred = model.neck(tokens[0, 1:])
            target = patchify(cut, patch, channels_last=True)[0]
            if normalised:
                mean = target.mean(-1, keepdim=True)
                var = target.var(-1, unbiased=True, keepdim=True)
                target = (target - mean) / (var + 1e-6).sqrt()
            error = (pred - target).square().mean(-1)
            total = total + error[hidden].sum()
            count += int(hidden.sum())
    return total / count


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize('norm_pix', [True, False])
@pytest.mark.parametrize('masked', [(6,), (1,), (9,), (2, 0, 5, 9)])
def test_loss_is_the_equation(norm_pix, masked):
    """With as many masked patches in every window, and with unequal ones."""
    model = build(head=dict(type='ropim_mm.LoMaRHead', norm_pix=norm_pix))
    x = torch.randn(2, 3, *SIZE)
    fields = given(masked=masked)
    expected = equation(model, x, *fields, norm_pix)
    expected.backward()
    grads = gradients(model)
    model.zero_grad()
    loss = model.loss(x, samples(*fields))
    assert list(loss) == ['loss']
    torch.testing.assert_close(loss['loss'], expected, rtol=1e-5, atol=1e-6)
    loss['loss'].backward()
    for name, grad in gradients(model).items():
        scale = grads[name].abs().max().item()
        torch.testing.assert_close(
            grad, grads[name], rtol=1e-4, atol=1e-5 * scale, msg=name
        )


@pytest.mark.parametrize('layers', [1, 2, 3])
def test_what_is_left_out_changes_nothing(layers):
    """Masked positions alone: the same numbers as the whole window gives."""
    model = build(layers=layers)
    x = torch.randn(4, 3, *SIZE)
    fields = samples(*given(batch=4))
    loss = model.loss(x, fields)['loss']
    loss.backward()
    grads = gradients(model)
    model.zero_grad()
    seen = model.reconstruct(x, fields)
    whole = model.head.loss(seen.pred, seen.patches, seen.mask)
    whole.backward()
    torch.testing.assert_close(loss, whole, rtol=1e-6, atol=0)
    for name, grad in gradients(model).items():
        scale = grad.abs().max().item()
        torch.testing.assert_close(
            grads[name], grad, rtol=1e-4, atol=1e-5 * scale, msg=name
        )


def test_less_is_computed():
    model = build(layers=1)
    x = torch.randn(4, 3, *SIZE)
    fields = samples(*given(batch=4))
    counts = []
    for step in (model.loss, model.reconstruct):
        with FlopCounterMode(display=False) as counter:
            step(x, fields)
        counts.append(counter.get_total_flops())
    # Per row of 9 patches, 3 visible: embedded 3 of 9, predicted 6 of 9; of
    # the only block, qkv for 3 and the two tokens of all rows, the rest for 6.
    d, values, rows = 16, 48, 12
    embed, predict = 2 * rows * values * d * 3, 2 * rows * d * values * 6
    qkv = 2 * 3 * d * d * (rows * 3 + 2)
    products = 2 * rows * d * 10 * (10 + 10 + 50)
    rest = 2 * rows * 6 * d * (d + 2 * 32)
    assert counts[0] == embed + predict + qkv + products + rest
    assert counts[0] < 0.7 * counts[1]


@pytest.mark.parametrize('layers', [1, 2, 3])
@pytest.mark.parametrize('what', ['loss', 'extract_feat'])
def test_buckets_are_computed_once_whatever_the_depth(layers, what):
    """In a compiled graph, and on the device: none is made elsewhere."""
    model, graphs = build(layers=layers), []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    step = torch.compile(getattr(model, what), backend=keep, fullgraph=True)
    step(torch.randn(2, 3, *SIZE))
    (graph,) = graphs
    calls = [n.target for n in graph.graph.nodes if n.op == 'call_function']
    # One logarithm an axis.
    assert calls.count(torch.log) == 2


def test_drawn_masks_and_windows():
    model = build()
    x = torch.randn(5, 3, *SIZE)
    ids = model.windows(x, None)
    assert ids.shape == (5, WINDOWS, 9)
    assert (ids == ids[:1]).all()  # the same for all images of the batch
    masked, visible = model.positions(ids, None)
    assert (masked.shape, visible.shape) == ((15, 6), (15, 3))
    both = torch.cat((masked, visible), dim=1).sort().values
    assert (both == torch.arange(9)).all()
    assert len({tuple(row) for row in masked.sort().values.tolist()}) > 5
    mask = model.mask(ids, None)
    assert mask.dtype == torch.bool
    assert (mask.sum(1) == 6).all()
    apart = build(window_sampling='image').windows(x, None)
    assert len({tuple(w) for w in apart[:, :, 0].tolist()}) > 1
    for image in apart:
        tops, lefts = image[:, 0] // 8, image[:, 0] % 8
        assert len(set(tops.tolist())) == len(set(lefts.tolist())) == WINDOWS


def test_every_image_meets_every_window():
    """Rows are image by image, also where batch and windows share a factor,
    the case in which the released code leaves pairs out."""
    model = build()
    x = torch.randn(3, 3, *SIZE)
    tops, lefts, mask = given(batch=3)
    seen = model.reconstruct(x, samples(tops, lefts, mask))
    patches = patchify(x, 4, channels_last=True)
    ids = window_patches(tops, lefts, WINDOW, (6, 8))
    for row in range(9):
        expected = patches[row // 3, ids[row // 3, row % 3]]
        assert torch.equal(seen.patches[row], expected)
        assert torch.equal(seen.mask[row], mask[row // 3, row % 3])


def test_what_reconstruct_gives():
    model = build()
    x = torch.randn(2, 3, *SIZE)
    fields = given()
    seen = model.reconstruct(x, samples(*fields))
    assert seen.pred.shape == seen.patches.shape == (6, 9, 48)
    assert seen.encoder_input.shape == seen.encoder_tokens.shape == (6, 10, 16)
    token = model.backbone.mask_token[0, 0]
    assert (seen.encoder_input[:, 1:][seen.mask] == token).all()
    cls = model.backbone.cls_token[0, 0]
    assert (seen.encoder_input[:, 0] == cls).all()
    # Normalised predictions become pixels with the patches' own statistics.
    perfect = model.head.target(seen.patches)
    pixels = model.head.to_pixels(perfect, seen.patches)
    torch.testing.assert_close(pixels, seen.patches, rtol=1e-4, atol=1e-5)
    raw = build(head=dict(type='ropim_mm.LoMaRHead', norm_pix=False)).head
    assert torch.equal(raw.to_pixels(seen.pred, seen.patches), seen.pred)


def test_windows_without_masks_are_possible():
    model = build()
    x = torch.randn(2, 3, *SIZE)
    tops, lefts, mask = given(windows=2)
    fields = samples(tops, lefts, mask)
    for sample in fields:
        sample.pop('window_mask')
    torch.manual_seed(4)
    seen = model.reconstruct(x, fields)
    expected = window_patches(tops, lefts, WINDOW, (6, 8))
    assert torch.equal(seen.ids, expected)
    assert (seen.mask.sum(1) == 6).all()


def test_nothing_masked_gives_no_nan():
    model = build()
    tops, lefts, mask = given()
    fields = samples(tops, lefts, torch.zeros_like(mask))
    loss = model.loss(torch.randn(2, 3, *SIZE), fields)['loss']
    loss.backward()
    assert loss == 0


def test_dropout_of_tokens_is_drawn_for_each():
    """Mask tokens are then not all alike, and nothing is left out."""
    model = build()
    model.backbone.drop_rate = 0.5
    model.backbone.drop_after_pos.p = 0.5
    x = torch.randn(2, 3, *SIZE)
    fields = samples(*given())
    with torch.no_grad():
        seen = model.reconstruct(x, fields).encoder_input[:, 1:]
        assert (seen == 0).float().mean() == pytest.approx(0.5, abs=0.1)
        losses = {model.loss(x, fields)['loss'].item() for _ in range(3)}
        assert len(losses) == 3
        model.eval()
        losses = {model.loss(x, fields)['loss'].item() for _ in range(3)}
    assert len(losses) == 1


def test_initial_weights():
    torch.manual_seed(0)
    model = MODELS.build(config())
    bias = model.backbone.patch_embed.projection.bias.clone()
    model.init_weights()
    assert torch.equal(model.backbone.patch_embed.projection.bias, bias)
    for block in model.backbone.layers:
        assert not block.attn.rpe_k.lookup_table_weight.any()
        assert not block.attn.qkv.bias.any()
        limit = (6 / (16 + 48)) ** 0.5
        largest = block.attn.qkv.weight.abs().max().item()
        assert 0.9 * limit < largest <= limit
    limit = (6 / (16 + 48)) ** 0.5
    largest = model.backbone.patch_embed.projection.weight.abs().max().item()
    assert 0.9 * limit < largest <= limit
    assert 0.01 < model.backbone.mask_token.std().item() < 0.03
    assert not model.neck.pred.bias.any()


def test_an_encoder_without_pretraining_has_no_mask_token():
    encoder = MODELS.build(dict(type='ropim_mm.LoMaRViT', arch=ARCH))
    assert encoder.mask_token is None
    assert encoder.pos_embed is None
    huge = MODELS.get('ropim_mm.LoMaRViT').arch_zoo['huge']
    assert huge == (1280, 32, 16, 5120)


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    model = MODELS.build(config())
    model.init_weights()
    x = torch.rand(4, 3, *SIZE).cumsum(-1).cumsum(-2) / 100
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    fields = samples(*given(batch=4))
    losses = []
    for _ in range(40):
        loss = model.loss(x, fields)['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(mask_ratio=0.0), 'mask_ratio is 0.0; expected a number stric'),
        (dict(mask_ratio=1.0), 'mask_ratio is 1.0; expected a number stric'),
        (dict(mask_ratio=0.1), r'mask_ratio 0.1 of the 9 patches .* none'),
        (dict(window_sampling='epoch'), "window_sampling is 'epoch'"),
        (dict(num_windows=0), 'num_windows is 0 and window_size 3'),
        (dict(window_size=0), 'num_windows is 3 and window_size 0'),
    ],
)
def test_arguments_that_make_no_sense(options, message):
    with pytest.raises(InputError, match=message):
        build(**options)


@pytest.mark.parametrize(
    ('change', 'found', 'wanted'),
    [
        (dict(out_type='cls_token'), "'out_type': 'cls_t", "_type': 'raw'"),
        (dict(final_norm=False), "'final_norm': False", "'final_norm': True"),
        (dict(with_mask_token=False), "token': False", "token': True"),
        (dict(out_indices=(0, 1)), r"indices': \(0, 1\)", r"': \(1,\)"),
        (dict(out_indices=0), r"indices': \(0,\)", r"': \(1,\)"),
    ],
)
def test_a_backbone_for_another_purpose(change, found, wanted):
    cfg = config()
    cfg['backbone'].update(change)
    message = f'LoMaRViT of 2 blocks, .*{found}.*; LoMaR needs .*{wanted}'
    with pytest.raises(InputError, match=message):
        MODELS.build(cfg)


@pytest.mark.parametrize(
    ('change', 'found'),
    [
        (dict(patch_size=8), 192),
        (dict(patch_size=(4, 2)), 24),
        (dict(out_channels=1), 16),
    ],
)
def test_a_neck_for_other_patches(change, found):
    cfg = config()
    cfg['neck'].update(change)
    message = f'predicts {found} values .* expected 48, .* 4x4 .* 3 channels'
    with pytest.raises(InputError, match=message):
        MODELS.build(cfg)


def test_several_views_of_an_image():
    with pytest.raises(
        InputError, match=r'are a list of 2; expected one tensor \(B, 3, H, W'
    ):
        build().loss([torch.zeros(2, 3, *SIZE)] * 2)


def test_a_window_larger_than_the_grid():
    model = build(window_size=7)
    with pytest.raises(InputError, match='window_size is 7 .* 6x8 .* 1 to 6'):
        model.loss(torch.zeros(2, 3, *SIZE))


def test_more_windows_than_free_rows():
    with pytest.raises(InputError, match='num_windows is 5, .* only 4 rows'):
        build(num_windows=5).loss(torch.zeros(2, 3, *SIZE))
    shared = build(num_windows=5, window_replacement=True)
    assert torch.isfinite(shared.loss(torch.randn(2, 3, *SIZE))['loss'])


def test_images_of_other_channels():
    with pytest.raises(InputError, match=r'\(2, 1, 24, 32\); expected \(B, 3'):
        build().loss(torch.zeros(2, 1, *SIZE))


def test_images_not_a_multiple_of_the_patch():
    with pytest.raises(InputError, match='image size 26x32 .* 4x4'):
        build().loss(torch.zeros(2, 3, 26, 32))


def test_fields_on_some_samples_only():
    fields = samples(*given())
    with pytest.raises(
        InputError, match='of 2 data samples 1 carry `window_tops`'
    ):
        build().loss(torch.zeros(2, 3, *SIZE), [fields[0], DataSample()])


@pytest.mark.parametrize('lost', ['window_tops', 'window_lefts'])
def test_one_field_without_the_other(lost):
    fields = samples(*given())
    for sample in fields:
        sample.pop(lost)
    with pytest.raises(InputError, match=f'carry no `{lost}`'):
        build().loss(torch.zeros(2, 3, *SIZE), fields)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda t, left, m: (t, left[:, :2], m),
            r'`window_tops` has shape \(3,\) and `window_lefts` \(2,\)',
        ),
        (
            lambda t, left, m: (t, left, m[..., :8]),
            r'`window_mask` has shape \(3, 8\); expected \(3, 9\)',
        ),
        (
            lambda t, left, m: (t, left, m[:, :2]),
            r'`window_mask` has shape \(2, 9\); expected \(3, 9\)',
        ),
        (
            lambda t, left, m: (t, left, m.float()),
            r'`window_mask` is of type torch.float32; expected torch.bool',
        ),
        (
            lambda t, left, m: (t + 4, left, m),
            r'`window_tops` holds values from \d to \d; .* begin at 0 to 3',
        ),
        (
            lambda t, left, m: (t, left - 6, m),
            r'`window_lefts` holds values from -\d to -?\d; .* at 0 to 5',
        ),
    ],
)
def test_fields_that_do_not_fit(change, message):
    fields = samples(*change(*given()))
    with pytest.raises(InputError, match=message):
        build().loss(torch.zeros(2, 3, *SIZE), fields)


def test_samples_with_different_numbers_of_windows():
    first = samples(*given())[:1]
    second = samples(*given(windows=2))[1:]
    with pytest.raises(InputError, match=r'shapes \[\(2,\), \(3,\)\]'):
        build().loss(torch.zeros(2, 3, *SIZE), first + second)


@pytest.mark.gpu
def test_masks_on_a_device_are_not_waited_for():
    """Where counts cannot be looked at, all positions are computed."""
    model = build().cuda()
    x = torch.randn(2, 3, *SIZE)
    fields = samples(*given())
    expected = build().loss(x, fields)['loss']
    loss = model.loss(x.cuda(), [s.cuda() for s in fields])['loss']
    torch.testing.assert_close(loss.cpu(), expected, rtol=1e-4, atol=1e-5)
