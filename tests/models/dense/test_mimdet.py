"""MIMDet: what the encoder is shown, what fills the gaps, what is loaded."""

import pytest
import torch
from mmengine.structures import BaseDataElement
from torch import nn

import tiny_models
from ropim_mm.checkpoints.coverage import CoverageError
from ropim_mm.checkpoints.pretrained import unchecked_pretrained
from ropim_mm.errors import InputError
from ropim_mm.models.dense import mimdet
from ropim_mm.models.dense.scattered import encode_scattered
from ropim_mm.models.layers.positions import sincos_positions
from ropim_mm.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from tiny_models import ARCH, METHODS, WIDTH

SIZE, GRID, LENGTH = (64, 96), (4, 6), 24
PREFIX = dict.fromkeys(METHODS, 'backbone.') | dict(
    conmim='momentum.backbone.'
)


def config(method='conmim', encoder=None, **options):
    settings = dict(
        type=f'ropim_mm.{tiny_models.ENCODERS[method]}',
        arch=ARCH,
        img_size=32,
        patch_size=8,
        out_type='raw',
        final_norm=True,
    )
    return dict(
        dict(
            type='ropim_mm.MIMDet',
            encoder=settings | (encoder or {}),
            decoder_dims=8,
            decoder_depth=2,
            decoder_heads=2,
        ),
        **options,
    )


def build(method='conmim', encoder=None, **options):
    torch.manual_seed(0)
    model = MODELS.build(config(method, encoder, **options))
    model.init_weights()
    tiny_models.shake(model)
    return model


def images(size=SIZE, channels=3, batch=2):
    return torch.randn(batch, channels, *size)


def samples(*shapes, ids=None):
    made = [BaseDataElement(metainfo=dict(img_shape=s)) for s in shapes]
    for sample, each in zip(made, ids or (), strict=False):
        sample.set_field(torch.tensor(each), 'visible_ids')
    return made


def shown(model, *args):
    """The tokens and places that the encoder is given in one pass."""
    with pytest.MonkeyPatch.context() as patch:
        seen = []

        def spy(encoder, tokens, places):
            seen.append((tokens, places))
            return encode_scattered(encoder, tokens, places)

        patch.setattr(mimdet, 'encode_scattered', spy)
        outs = model(*args)
    ((tokens, places),) = seen
    return outs, tokens, places


def stem_tokens(model, x):
    return model.stem(x)[2].flatten(2).transpose(1, 2)


# --- Parts ------------------------------------------------------------------


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('size', [(64, 64), (32, 96), (160, 64)])
def test_levels(method, size):
    model = build(method, in_channels=2, encoder=dict(in_channels=2))
    x = images(size, channels=2)
    assert model.out_channels == (WIDTH // 4, WIDTH // 2, 8, 8)
    for mode in (True, False):
        outs = model.train(mode)(x)
        assert [tuple(out.shape) for out in outs] == [
            (2, width, size[0] // stride, size[1] // stride)
            for width, stride in zip(
                model.out_channels, (4, 8, 16, 32), strict=True
            )
        ]
    fine, middle, _ = model.stem(x)
    assert torch.equal(outs[0], fine)
    assert torch.equal(outs[1], middle)
    assert torch.equal(outs[3], nn.functional.max_pool2d(outs[2], 2))


@pytest.mark.parametrize('method', METHODS)
def test_gradients_reach_everything(method):
    model = build(method)
    shapes = samples((60, 96), (64, 40))
    sum(o.square().mean() for o in model(images(), shapes)).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.abs().max() > 0, name
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == ({'encoder.pos_embed'} if method == 'rmae' else set())


def test_positions_are_those_of_the_formula():
    decoder = mimdet.MapDecoder(8, 12, 1, 1)
    for grid in ((3, 5), (4, 1), (1, 7)):
        like = torch.zeros((), dtype=torch.float64)
        found = decoder.positions(grid, like)
        assert found.dtype == torch.float64
        assert torch.equal(found.float(), sincos_positions(grid, 12))


def test_the_fill_is_the_stems():
    """Seen tokens come from the encoder, all others from the stem."""
    model = build()
    x, shapes = images(), samples((64, 96), (64, 40))
    _, tokens, places = shown(model, x, shapes)
    stem = stem_tokens(model, x)
    latent = encode_scattered(model.encoder, tokens, places)
    decoder = model.decoder
    found = decoder.assemble(latent, stem, places)
    found = found - decoder.positions(GRID, found)
    expected = decoder.fill(stem)
    for i, count in enumerate((12, 6)):
        ids = places.ids[i, :count]
        expected[i, ids] = decoder.embed(latent[i, 1 : 1 + count])
    torch.testing.assert_close(found[:, 1:], expected)
    torch.testing.assert_close(found[:, 0], decoder.embed(latent[:, 0]))
    # That is where the gradient goes.
    (grad,) = torch.autograd.grad(found[:, 1:].sum(), decoder.fill.bias)
    assert grad.tolist() == [12 + 18] * 8


def test_the_decoder_against_its_blocks():
    model = build()
    x = images(batch=1)
    _, tokens, places = shown(model, x)
    latent = encode_scattered(model.encoder, tokens, places)
    decoder = model.decoder
    y = decoder.assemble(latent, stem_tokens(model, x), places)
    for block in decoder.blocks:
        y = y + block.attn(block.ln1(y))
        y = y + block.ffn(block.ln2(y))
    y = decoder.norm(y)[0, 1:].t().reshape(8, *GRID)
    out = decoder(latent, stem_tokens(model, x), places)
    torch.testing.assert_close(out[0], y)


# --- What the encoder sees --------------------------------------------------


@pytest.mark.parametrize('ratio, count', [(0.5, 12), (0.25, 6), (0.01, 1)])
def test_a_random_part_in_training(ratio, count):
    model = build(sample_ratio=ratio)
    x = images()
    hits = torch.zeros(LENGTH)
    for _ in range(200):
        _, tokens, places = shown(model, x)
        assert places.grid == GRID
        assert places.alive is None
        assert places.ids.shape == (2, count)
        for ids in places.ids:
            assert len(set(ids.tolist())) == count
            hits[ids] += 1
    assert torch.equal(tokens, places.take(stem_tokens(model, x)))
    # Each token equally often: 400 draws, five deviations.
    share = count / LENGTH
    spread = (400 * share * (1 - share)) ** 0.5
    assert (hits - 400 * share).abs().max() < 5 * spread


def test_all_of_it_in_evaluation():
    model = build().eval()
    x = images()
    _, tokens, places = shown(model, x)
    assert places.ids is None
    assert torch.equal(tokens, stem_tokens(model, x))
    assert torch.equal(model(x)[2], model(x)[2])


def test_all_of_it_in_training():
    """In a random order, and with a gradient for every weight."""
    model = build(sample_ratio=1.0)
    x = images()
    _, _, places = shown(model, x)
    every = torch.arange(24).expand(len(x), -1)
    assert torch.equal(places.ids.sort(dim=1).values, every)
    sum(level.square().sum() for level in model(x)).backward()
    assert [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and p.grad is None
    ] == []


def test_padding_is_never_seen():
    """49 x 96 pixels have tokens in 4 rows, 16 x 33 in 1 row and 3 columns."""
    model = build()
    x, shapes = images(), samples((49, 96), (16, 33))
    inside = [set(range(24)), {0, 1, 2}]
    for _ in range(50):
        _, _, places = shown(model, x, shapes)
        assert places.alive.sum(1).tolist() == [12, 1]
        for ids, alive, own in zip(
            places.ids, places.alive, inside, strict=True
        ):
            seen = ids[alive].tolist()
            assert len(set(seen)) == len(seen)
            assert set(seen) <= own
    _, _, places = shown(model.eval(), x, shapes)
    assert places.alive.sum(1).tolist() == [24, 3]
    assert places.ids[1, :3].tolist() == [0, 1, 2]
    assert places.ids[0].tolist() == list(range(24))


@pytest.mark.parametrize('method', METHODS)
def test_what_is_in_the_padding_does_not_matter(method):
    """Not to what encoder and decoder make of the image, where the stem's
    convolutions do not reach it."""
    model = build(method).double().eval()
    x, shapes = images().double(), samples((64, 96), (32, 64))
    with torch.no_grad():
        before = model(x, shapes)[2]
        fine, middle, coarse = model.stem(x)
        coarse[1, :, 2:] += torch.randn(WIDTH, 2, 6)
        coarse[1, :, :, 4:] += torch.randn(WIDTH, 4, 2)
        model.stem.forward = lambda _: (fine, middle, coarse)
        after = model(x, shapes)[2]
        blind = model(x)[2]
    torch.testing.assert_close(after[0], before[0])
    torch.testing.assert_close(after[1, :, :2, :4], before[1, :, :2, :4])
    assert not torch.allclose(
        blind[1, :, :2, :4], before[1, :, :2, :4], atol=1e-3
    )


@pytest.mark.parametrize('method', METHODS)
def test_images_do_not_see_each_other(method):
    """An image with empty slots gives what it gives without."""
    model = build(method).double()
    x = images().double()
    ids = [[0, 7, 3, 9], [1, 6]]
    both = model(x, samples((64, 96), (32, 64), ids=ids))[2]
    for i, shape in enumerate([(64, 96), (32, 64)]):
        alone = model(x[i : i + 1], samples(shape, ids=ids[i : i + 1]))[2]
        torch.testing.assert_close(both[i : i + 1], alone)


@pytest.mark.parametrize('train', [True, False])
def test_replay(train):
    model = build().train(train)
    x = images()
    ids = [[0, 7, 23], [6, 1, 2]]
    shapes = [SIZE] * 2
    outs, tokens, places = shown(model, x, samples(*shapes, ids=ids))
    assert places.ids.tolist() == ids
    assert places.alive is None
    assert torch.equal(tokens, places.take(stem_tokens(model, x)))
    again = model(x, samples(*shapes, ids=ids))
    for a, b in zip(outs, again, strict=True):
        assert torch.equal(a, b)
    # The order says nothing.
    turned = model(x, samples(*shapes, ids=[each[::-1] for each in ids]))
    torch.testing.assert_close(turned[2], outs[2])
    other = model(x, samples(*shapes, ids=[[0, 7, 22], [6, 1, 2]]))
    assert not torch.allclose(other[2][0], outs[2][0], atol=1e-4)
    torch.testing.assert_close(other[2][1], outs[2][1])


def test_seeing_everything_in_training_is_evaluation():
    model = build(encoder=dict(drop_path_rate=0.0))
    x = images()
    everything = [torch.randperm(LENGTH).tolist() for _ in range(2)]
    trained = model(x, samples(SIZE, SIZE, ids=everything))
    tested = model.eval()(x)
    for a, b in zip(trained, tested, strict=True):
        torch.testing.assert_close(a, b)


def test_bfloat16():
    model = build()
    sums = []
    for block in model.decoder.blocks:
        block.register_forward_hook(lambda _, xs, x: sums.extend((xs[0], x)))
    with torch.autocast('cpu', torch.bfloat16):
        outs = model(images(), samples((64, 96), (64, 40)))
        sum(o.float().square().mean() for o in outs).backward()
    assert {each.dtype for each in sums} == {torch.float32}
    assert outs[2].isfinite().all()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name


# --- Loading and training ---------------------------------------------------


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('place', ['backbone', 'encoder'])
def test_a_pretraining_checkpoint(method, place, tmp_path):
    path = tmp_path / 'pretrained.pth'
    weights = tiny_models.build(method).state_dict()
    torch.save(dict(state_dict=weights), path)
    init_cfg = dict(
        type='Pretrained', checkpoint=str(path), prefix=PREFIX[method]
    )
    cfg = config(method)
    target = cfg if place == 'backbone' else cfg['encoder']
    target['init_cfg'] = init_cfg
    reports = []
    load = mimdet.ViTBackbone._load_pretrained
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            mimdet.ViTBackbone,
            '_load_pretrained',
            lambda *a, **k: reports.append(load(*a, **k)),
        )
        model = MODELS.build(cfg)
        model.init_weights()
    (report,) = reports
    assert report.complete
    assert report.missing == report.fresh == ()
    left = {'patch_embed.projection.weight', 'patch_embed.projection.bias'}
    assert left <= set(report.superfluous)
    assert 'not used from the file: ' in str(report)
    assert 'patch_embed.projection.weight' in str(report)
    names = [
        n for n, _ in model.encoder.named_parameters() if 'table' not in n
    ]
    assert 'ln1.weight' in names
    assert not any(n.startswith('patch_embed') for n in names)
    for name in names:
        own = model.encoder.state_dict()[name]
        assert torch.equal(own, weights[PREFIX[method] + name])
    shared = PREFIX[method] + 'rel_pos_bias.relative_position_bias_table'
    if shared in weights:
        for layer in model.encoder.layers:
            table = layer.attn.relative_position_bias_table
            assert torch.equal(table, weights[shared])
    assert not unchecked_pretrained(_Config(model=dict(backbone=cfg)))


class _Config(dict):
    """As much of a config as a check of it reads."""

    __getattr__ = dict.__getitem__


def test_a_checkpoint_of_another_method(tmp_path):
    path = tmp_path / 'pretrained.pth'
    state = tiny_models.build('lomar').state_dict()
    torch.save(dict(state_dict=state), path)
    model = MODELS.build(
        config(
            init_cfg=dict(
                type='Pretrained', checkpoint=str(path), prefix='backbone.'
            )
        )
    )
    with pytest.raises(CoverageError, match='rpe_k') as error:
        model.init_weights()
    assert 'layers.0.gamma_1' in error.value.report.missing


def test_depths_and_rates():
    """Double where nothing was pretrained; depths are the encoder's."""
    model = build()
    assert model.get_layer_depth('x.encoder.cls_token', 'x.') == (0, 4)
    assert model.get_layer_depth('encoder.layers.1.ln1.bias') == (2, 4)
    for name in ('encoder.ln1.bias', 'stem.projection.bias', 'decoder.x'):
        assert model.get_layer_depth(name) == (3, 4)
    groups = OPTIM_WRAPPER_CONSTRUCTORS.build(
        dict(
            type='ropim_mm.LayerDecayOptimWrapperConstructor',
            optim_wrapper_cfg=dict(optimizer=dict(type='AdamW', lr=1.0)),
            paramwise_cfg=dict(
                layer_decay_rate=0.5, lr_mult=dict(stem=2.0, decoder=2.0)
            ),
        )
    ).param_groups(model)
    rates = {n: g['lr'] for g in groups for n in g['param_names']}
    assert len(rates) == len(list(model.parameters()))
    for name, rate in rates.items():
        if name.startswith(('stem.', 'decoder.')):
            assert rate == 2.0
    assert rates['encoder.layers.0.ln1.bias'] == 0.25
    assert rates['encoder.cls_token'] == 0.125


def test_starts():
    """Xavier in stem and decoder, the encoder its own way."""
    model = MODELS.build(config('lomar', encoder=dict(arch='tiny')))
    before = model.encoder.layers[0].attn.qkv.weight.clone()
    model.init_weights()
    assert not torch.equal(model.encoder.layers[0].attn.qkv.weight, before)
    for layer in (model.stem.projection, model.decoder.fill):
        fan_out, fan_in = layer.weight.flatten(1).shape
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert 0.9 * bound < layer.weight.abs().max() <= bound
    assert not model.decoder.fill.bias.any()


def test_no_warning_of_resized_tables(monkeypatch):
    """Sizes differ from batch to batch, and so they shall."""
    notes = []
    monkeypatch.setattr(
        'ropim_mm.models.layers.vit.print_log',
        lambda text, **_: notes.append(text),
    )
    build('rmae')(images())
    assert not notes
    tiny_models.encoder('rmae').train()(images())
    assert 'position tables' in notes[0]


# --- Bad input --------------------------------------------------------------


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(sample_ratio=0.0), r'backbone.sample_ratio is 0.0.*\(0, 1\]'),
        (dict(sample_ratio=1.5), r'sample_ratio is 1.5'),
        (dict(decoder_depth=0), r'decoder_depth is 0.*at least 1'),
        (dict(decoder_dims=6), r'width 6.*multiple of 4'),
        (
            dict(encoder=dict(out_type='featmap')),
            r"out_type 'featmap'.*expected out_type='raw'",
        ),
        (dict(encoder=dict(out_indices=0)), r'out_indices \(0,\).*\(1,\)'),
        (
            dict(encoder=dict(arch=dict(ARCH, embed_dims=12))),
            'embed_dims of the encoder is 12.*multiple of 8',
        ),
        (
            dict(encoder=dict(window_size=3, out_type='raw')),
            "window_size.*expected 'featmap'",
        ),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(InputError, match=message):
        MODELS.build(config(**options))


def test_an_encoder_of_somebody_else():
    with pytest.raises(InputError, match='a ConvStem; expected ropim_mm.RO'):
        MODELS.register_module(module=mimdet.ConvStem, force=True)
        try:
            encoder = dict(
                type='ropim_mm.ConvStem', in_channels=3, embed_dims=8
            )
            MODELS.build(dict(type='ropim_mm.MIMDet', encoder=encoder))
        finally:
            del MODELS.module_dict['ConvStem']


@pytest.mark.parametrize(
    'size, given, message',
    [
        ((64, 80), None, '64x80.*multiples of 32.*pad_size_divisor=32'),
        ((64, 64), samples((64, 64)), '2 images came with 1 data samples'),
        ((64, 64), samples((64, 65), (8, 8)), r'\(64, 65\).*at most 64x64'),
        ((64, 64), samples((64, 0), (8, 8)), r'img_shape.*is \(64, 0\)'),
        ((64, 64), samples(None, (8, 8)), r'None.*PackDetInputs'),
        (
            (64, 64),
            samples((64, 64), (64, 64), ids=[[0]]),
            'of 2 data samples 1 carry `visible_ids`',
        ),
        (
            (64, 64),
            samples((64, 64), (64, 64), ids=[[0], [[1]]]),
            r'visible_ids` is torch.int64 of shape \(1, 1\)',
        ),
        (
            (64, 64),
            samples((64, 64), (64, 64), ids=[[0.5], [1.0]]),
            r'visible_ids` is torch.float32',
        ),
    ],
)
def test_bad_batches(size, given, message):
    with pytest.raises(InputError, match=message):
        build()(images(size), given)


def test_other_channels():
    with pytest.raises(InputError, match=r'\(2, 4, 64, 64\).*\(B, 3, H, W\)'):
        build()(images((64, 64), channels=4))


def test_checkpointed_activations():
    """Encoder and decoder: the same gradients, and each block ran twice."""
    calls = []

    def gradients(with_cp):
        model = build(with_cp=with_cp, sample_ratio=1.0).train()
        assert model.encoder.with_cp == model.decoder.with_cp == with_cp
        for blocks in (model.encoder.layers, model.decoder.blocks):
            blocks[-1].ln2.register_forward_hook(lambda *_: calls.append(1))
        x = images(batch=1).to(torch.float32)
        sum(out.square().sum() for out in model(x)).backward()
        return {n: p.grad for n, p in model.named_parameters()}

    torch.manual_seed(1)
    state = torch.get_rng_state()
    plain = gradients(False)
    assert len(calls) == 2
    torch.set_rng_state(state)
    again = gradients(True)
    assert len(calls) == 6
    for name, gradient in plain.items():
        if gradient is None:
            assert again[name] is None
        else:
            torch.testing.assert_close(again[name], gradient)


@pytest.mark.gpu
@pytest.mark.parametrize('method', METHODS)
def test_devices_agree(method):
    model = build(method)
    x, ids = images(), [[0, 5, 7, 23], [3, 4]]
    data = samples(SIZE, (40, 80), ids=ids)
    on_cpu = model(x, data)
    on_gpu = model.cuda()(x.cuda(), data)
    for a, b in zip(on_gpu, on_cpu, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-3, atol=1e-4)
    sum(level.square().mean() for level in on_gpu).backward()
    with torch.autocast('cuda', torch.bfloat16):
        outs = model(x.cuda(), data)
    assert all(torch.isfinite(out).all() for out in outs)
