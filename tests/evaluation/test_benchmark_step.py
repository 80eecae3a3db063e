from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from mmengine.logging import MMLogger
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tiny_models
from config_checks import autocast_that_knows_meta
from ropim_mm.engine import launch
from ropim_mm.engine.distributed import LaunchError
from ropim_mm.errors import InputError
from ropim_mm.evaluation import benchmark_step
from ropim_mm.evaluation.benchmark_machine import (
    MatrixRate,
    device_name,
    resident_memory,
    usable_cores,
)
from ropim_mm.evaluation.benchmark_step import (
    StepSpec,
    Timing,
    TrainingStep,
    compare,
    make_step,
)
from ropim_mm.evaluation.step_parts import PartsClock
from ropim_mm.evaluation.synthetic import synthetic_batch

D, LAYERS, HIDDEN, PATCH, SIDE = 32, 2, 48, 8, 32
ARCH = dict(
    _delete_=True,
    embed_dims=D,
    num_layers=LAYERS,
    num_heads=2,
    feedforward_channels=HIDDEN,
)
SMALL = {
    'model.backbone.arch': ARCH,
    'model.backbone.img_size': SIDE,
    'model.backbone.patch_size': PATCH,
    'model.head.patch_size': PATCH,
    'train_dataloader.dataset.pipeline.1.scale': SIDE,
}
ROPIM = {
    **SMALL,
    'model.neck.embed_dims': D,
    'model.neck.patch_size': PATCH,
}
SIMMIM = {
    **SMALL,
    'model.neck.in_channels': D,
    'model.neck.encoder_stride': PATCH,
    'train_dataloader.dataset.pipeline.3.input_size': SIDE,
    'train_dataloader.dataset.pipeline.3.mask_patch_size': PATCH,
    'train_dataloader.dataset.pipeline.3.model_patch_size': PATCH,
}
MAE = {
    **SMALL,
    'model.neck.patch_size': PATCH,
    'model.neck.embed_dim': D,
    'model.neck.num_patches': (SIDE // PATCH) ** 2,
    'model.neck.decoder_embed_dim': 16,
    'model.neck.decoder_depth': 1,
    'model.neck.decoder_num_heads': 2,
}


@pytest.fixture(autouse=True, scope='module')
def quiet():
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    yield
    logger.setLevel(level)


@pytest.fixture(scope='module')
def configs(request):
    root = request.config.rootpath / 'configs'
    schedule = 'p16_8xb128-amp-coslr-300e_in1k.py'
    return dict(
        ropim=str(root / f'ropim/ropim_vit-base-{schedule}'),
        simmim=str(root / f'peers/beit-simmim_vit-base-{schedule}'),
        mae=str(root / f'peers/mae_vit-base-{schedule}'),
        finetune=str(
            root / 'ropim/benchmarks/vit-base-p16_8xb128-coslr-100e_in1k.py'
        ),
    )


@pytest.fixture(autouse=True)
def short_timings(monkeypatch):
    monkeypatch.setattr(benchmark_step, 'MIN_SECONDS', 0.0)


@pytest.fixture
def ropim(configs):
    return TrainingStep(StepSpec(configs['ropim'], ROPIM, 4, 'float32'))


def expected_flops(images: int) -> int:
    """Two operations a multiply-add; backward is twice forward, except that
    the image needs no gradient."""
    patches = (SIDE // PATCH) ** 2
    n = patches + 1
    pixels = 3 * PATCH**2
    embed = 2 * patches * pixels * D
    block = 2 * n * D * (3 * D + D + 2 * HIDDEN) + 2 * 2 * n * n * D
    decode = 2 * patches * D * pixels
    return images * (2 * embed + 3 * (LAYERS * block + decode))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(
    'name, options', [('ropim', ROPIM), ('simmim', SIMMIM)]
)
def test_operations_are_those_of_a_vit(configs, name, options, dtype):
    step = TrainingStep(StepSpec(configs[name], options, 4, dtype))
    assert step.flops == expected_flops(4)
    assert step.dtype == getattr(torch, dtype)
    assert step.optim_wrapper.cast_dtype == step.dtype


def test_operations_of_a_large_batch(configs, monkeypatch):
    monkeypatch.setattr(benchmark_step, 'COUNTED_IMAGES', 2)
    step = TrainingStep(StepSpec(configs['ropim'], ROPIM, 6))
    assert step.flops == expected_flops(6)
    assert step.dtype == torch.bfloat16  # that of the config


def test_a_step_trains(ropim):
    name = 'backbone.layers.0.ffn.layers.1.weight'
    before = ropim.model.get_parameter(name).clone()
    assert ropim.seconds(1)[0] > 0
    assert not torch.equal(ropim.model.get_parameter(name), before)
    assert ropim.model.get_parameter(name).grad is None  # zeroed


def test_accumulated_steps_are_one_update_each(configs):
    options = {
        **ROPIM,
        'train_dataloader.batch_size': 2,
        'optim_wrapper.accumulative_counts': 4,
    }
    step = TrainingStep(StepSpec(configs['ropim'], options))
    assert step.batch_size == len(step.batch['data_samples']) == 2
    for _ in range(2):
        weight = step.model.backbone.patch_embed.projection.weight
        before = weight.clone()
        step()
        assert not torch.equal(weight, before)


def test_text_says_what_was_measured(ropim, configs):
    parameters = sum(p.numel() for p in ropim.model.parameters())
    assert str(ropim) == (
        f'{configs["ropim"]}: ROPIM, {parameters / 1e6:.1f} M parameters, '
        '4x3x32x32 uint8'
    )


def test_batch_is_what_the_pipeline_packs(configs):
    cfg = launch.load_config(configs['simmim'], deepcopy(SIMMIM))
    step = TrainingStep(StepSpec(configs['simmim'], SIMMIM, 3))
    inputs, samples = step.batch['inputs'], step.batch['data_samples']
    assert inputs.dtype == torch.uint8
    assert inputs.shape == (3, 3, SIDE, SIDE)
    ratio = cfg.train_dataloader.dataset.pipeline[3].mask_ratio
    for sample in samples:
        assert sample.mask.shape == (4, 4)
        assert sample.mask.sum() == -(-16 * ratio // 1)


@pytest.mark.parametrize('name, options', [
    ('mae', MAE),
    ('finetune', {
        key: value for key, value in SMALL.items() if 'head' not in key
    } | {'model.head.in_channels': D}),
])  # fmt: skip
def test_other_models(configs, name, options):
    """Labels, batch augmentation and an `init_cfg` that names no file."""
    step = TrainingStep(StepSpec(configs[name], options, 4))
    assert step.flops > 0
    assert step.seconds(1)[0] > 0


def test_pipeline_that_needs_more_than_an_image(configs):
    cfg = launch.load_config(configs['ropim'], deepcopy(ROPIM))
    cfg.train_dataloader.dataset.pipeline[1] = dict(
        type='Collect', keys=['regions']
    )
    with pytest.raises(LaunchError, match="an image and a label .*'regions'"):
        with benchmark_step.MODELS.switch_scope_and_registry('mmpretrain'):
            synthetic_batch(cfg, 1)


@pytest.mark.parametrize('name, options', [('ropim', ROPIM), ('mae', MAE)])
def test_images_of_another_size(configs, name, options):
    """Model and pipeline are changed together, and the weights of positions
    with them."""
    step = TrainingStep(StepSpec(configs[name], options, 2, size=48))
    assert step.batch['inputs'].shape == (2, 3, 48, 48)
    assert step.model.backbone.img_size == (48, 48)
    assert step.model.backbone.patch_resolution == (6, 6)
    if name == 'mae':
        assert step.model.neck.num_patches == 36
        assert step.model.neck.decoder_pos_embed.shape[1] == 37


def test_size_that_is_no_multiple_of_the_patch(configs):
    with pytest.raises(InputError, match='image size 50x50 .* multiple of'):
        TrainingStep(StepSpec(configs['ropim'], ROPIM, 2, size=50))


def test_missing_field(tmp_path):
    path = tmp_path / 'empty.py'
    path.write_text('model = dict()\n')
    with pytest.raises(LaunchError, match='empty.py has no train_dataloader'):
        TrainingStep(StepSpec(str(path)))


def test_compiled_model_is_the_one_that_runs(configs, monkeypatch):
    calls = []

    def compiler(forward):
        def compiled(*args, **kwargs):
            calls.append(kwargs['mode'])
            return forward(*args, **kwargs)

        return compiled

    monkeypatch.setattr(torch, 'compile', compiler)
    spec = StepSpec(configs['ropim'], ROPIM, 2, compile=True)
    step = TrainingStep(spec)
    warm_up = len(calls)
    step()
    assert warm_up >= 3
    assert calls == ['loss'] * (warm_up + 1)
    assert step.flops == expected_flops(2)  # counted before compiling
    assert PartsClock(step).shares(1) == {}


def test_rounds_take_turns(ropim, monkeypatch):
    order = []
    other = type(ropim).__new__(type(ropim))
    other.__dict__.update(ropim.__dict__)
    monkeypatch.setattr(ropim, 'seconds', lambda: (order.append('A'), 1.0))
    monkeypatch.setattr(other, 'seconds', lambda: (order.append('B'), 2.0))
    monkeypatch.setattr(
        benchmark_step, 'MatrixRate', lambda *args: lambda: 1e9
    )
    seen = []
    a, b = compare([ropim, other], 3, lambda number, _: seen.append(number))
    assert order == ['A', 'B'] * 3
    assert seen == [0, 1, 2]
    assert (a.cpu_seconds, b.cpu_seconds) == ([1.0] * 3, [2.0] * 3)
    assert a.rates == [1e9] * 3


def test_summary():
    timing = Timing(
        seconds=[1.0, 4.0, 2.0],
        cpu_seconds=[1.0, 1.5, 2.0],
        rates=[8e9, 4e9, 10e9],
        flops=8_000_000_000,
        images=16,
    )
    assert timing.fractions == pytest.approx([1.0, 0.5, 0.4])
    assert timing.summary() == pytest.approx(
        dict(
            seconds=2.0,
            seconds_minimum=1.0,
            cpu_seconds=1.5,
            images_per_second=8.0,
            gflop_per_image=0.5,
            matrix_gflop_per_second=8.0,
            matrix_gflop_per_second_best=10.0,
            fraction=0.5,
            fraction_of_best=0.8,
        )
    )


@pytest.mark.parametrize('method', tiny_models.METHODS)
def test_steps_of_all_methods(method, tmp_path, monkeypatch):
    """Whatever the pipeline packs; a copy moves as a hook would move it."""
    path = tmp_path / f'{method}.py'
    path.write_text(tiny_models.config_text(method, 'nowhere'))
    monkeypatch.setattr(benchmark_step, 'COUNTED_IMAGES', 1)
    step = TrainingStep(StepSpec(str(path), size=48))
    inputs = step.batch['inputs']
    views = inputs if isinstance(inputs, list) else [inputs]
    assert [tuple(v.shape) for v in views] == [(4, 3, 48, 48)] * len(views)
    assert len(views) == (2 if method == 'conmim' else 1)
    # Every image has as many operations.
    assert step.flops > 0 and step.flops % 4 == 0
    assert step.model.backbone.patch_resolution == (6, 6)
    before = {n: p.clone() for n, p in step.model.named_parameters()}
    step()
    after = dict(step.model.named_parameters())
    for name, value in before.items():
        trained = after[name].requires_grad or name.startswith('momentum.')
        assert torch.equal(after[name], value) is not trained, name


@pytest.mark.parametrize('method', tiny_models.METHODS)
def test_products_in_functions_of_our_own_are_counted(method):
    """What is written out for CPUs has the operations of the plain way, which
    other devices go."""
    counts = []
    for device in ('cpu', 'meta'):
        model = tiny_models.build(method)
        inputs, samples = tiny_models.batch(model)
        if device == 'meta':
            views = inputs if isinstance(inputs, list) else [inputs]
            views = [view.to(device) for view in views]
            inputs = views if len(views) > 1 else views[0]
            samples = [sample.to(device) for sample in samples]
            model.to(device)
        counter = FlopCounterMode(display=False)
        with (
            sdpa_kernel(SDPBackend.MATH),
            autocast_that_knows_meta(),
            counter,
        ):
            tiny_models.loss_of(model, inputs, samples).backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_matrix_rate(monkeypatch):
    rate = MatrixRate(torch.float32, torch.device('cpu'))
    assert rate() > 1e8
    assert rate.size == 2048
    times = iter([4.0, 2.0, 8.0])
    rate._count = 3
    monkeypatch.setattr(rate, '_seconds', lambda count: next(times))
    assert rate() == 2 * 2048**3 * 3 / 2.0


def test_resident_memory_sees_an_allocation():
    before, _ = resident_memory()
    block = bytearray(b'x') * (64 << 20)
    now, peak = resident_memory()
    assert now - before > 60 << 20
    del block
    # Linux counts a few pages a thread late.
    assert peak > now - (4 << 20)
    assert resident_memory()[1] - before > 56 << 20


def test_machine_has_a_name_and_cores():
    assert device_name()
    assert usable_cores() >= 1


@pytest.mark.gpu
def test_on_a_gpu(configs):
    torch.cuda.empty_cache()
    small = TrainingStep(StepSpec(configs['ropim'], ROPIM, 4))
    large = TrainingStep(StepSpec(configs['ropim'], ROPIM, 64))
    parameters = sum(p.numel() for p in small.model.parameters())
    # Weights, gradients, two moments; more images, more activations.
    assert small.memory >= 4 * 4 * parameters
    assert large.memory > small.memory
    assert small.flops == expected_flops(4)
    assert small.batch['inputs'].is_pinned()
    (shares,) = PartsClock(small).shares(3).values()
    assert all(0 < share < 1 for share in shares)


def encoder_config(tmp_path, scope='mmpretrain', **options):
    """A config with nothing but an encoder, in windows."""
    backbone = dict(
        type='ropim_mm.RMAEViT',
        arch=dict(ARCH),
        img_size=64,
        patch_size=PATCH,
        out_type='featmap',
        window_size=4,
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.'),
    )
    del backbone['arch']['_delete_']
    path = tmp_path / 'encoder.py'
    path.write_text(
        "custom_imports = dict(imports=['ropim_mm'])\n"
        f'default_scope = {scope!r}\n'
        f'model = dict(backbone={backbone | options!r})\n'
        "optim_wrapper = dict(optimizer=dict(type='SGD', lr=1))\n"
    )
    return str(path)


def test_encoder_alone(tmp_path):
    spec = StepSpec(encoder_config(tmp_path), batch_size=2, backbone_only=True)
    windowed = make_step(spec)
    assert windowed.batch['inputs'].shape == (2, 3, 64, 64)
    whole = make_step(replace(spec, options={'model.backbone.window_size': 8}))
    # Of 64 tokens each attends to 16; products of queries and keys and of
    # weights and values, forward once and backward twice.
    saved = 2 * 3 * LAYERS * 2 * 2 * 64 * (64 - 16) * D
    assert whole.flops - windowed.flops == saved
    before = [p.clone() for p in windowed.model.parameters()]
    windowed()
    for old, new in zip(before, windowed.model.parameters(), strict=True):
        assert torch.equal(old, new) and new.grad is None
    assert windowed.seconds(1)[0] > 0


def test_encoder_within_a_backbone(tmp_path):
    """MIMDet's is one of its parts; its stem sees the image."""
    encoder = dict(
        type='ropim_mm.ConMIMViT',
        arch=dict(ARCH),
        img_size=64,
        patch_size=16,
        out_type='raw',
    )
    del encoder['arch']['_delete_']
    path = tmp_path / 'mimdet.py'
    backbone = dict(
        type='ropim_mm.MIMDet',
        encoder=encoder,
        decoder_dims=8,
        decoder_depth=1,
        decoder_heads=2,
    )
    path.write_text(
        "custom_imports = dict(imports=['ropim_mm'])\n"
        "default_scope = 'mmdet'\n"
        f'model = dict(backbone={backbone!r})\n'
        "optim_wrapper = dict(optimizer=dict(type='SGD', lr=1))\n"
    )
    spec = StepSpec(str(path), batch_size=1, backbone_only=True)
    assert make_step(spec).batch['inputs'].shape == (1, 3, 64, 64)
    larger = make_step(replace(spec, size=96))
    assert larger.batch['inputs'].shape == (1, 3, 96, 96)
    assert larger.model.encoder.patch_resolution == (6, 6)
    larger()


def test_encoder_alone_without_an_encoder(tmp_path):
    path = encoder_config(tmp_path)
    spec = StepSpec(path, {'model.backbone': None}, 1, backbone_only=True)
    with pytest.raises(LaunchError, match='has no model.backbone'):
        make_step(spec)
