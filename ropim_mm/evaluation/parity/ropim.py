"""Reference vectors of ROPIM."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from mmengine.optim import OptimWrapper
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample
from torch.nn import functional as F

from ...checkpoints.official import convert_state_dict
from ...engine import LayerDecayOptimWrapperConstructor
from ...models import ROPIM
from ...models.layers import make_sketch, num_buckets, sample_sketch
from ...registry import PARAM_SCHEDULERS
from .cases import Case
from .compare import Comparison, close, close_in_scale, exact


def run(case: Case) -> Iterator[Comparison]:
    """Replay one case; its contents say of which kind it is.

    Raises:
        ValueError: No known kind of case holds such arrays.
    """
    names = set(case.arrays)
    if {'sketch_hash', 'reconstruction'} <= names:
        return pretraining(case)
    if {'logits', 'soft_targets'} <= names:
        return fine_tuning(case)
    if 'lr_used' in names:
        return schedule(case)
    if 'size_survey' in case.info or any(n.endswith('/hash') for n in names):
        return generator(case)
    raise ValueError(
        f'case {case.name!r} holds {sorted(names)[:8]}..., which is no known '
        'kind of ROPIM case (pretraining, fine-tuning, schedule, generator)'
    )


def backbone_config(args: dict) -> dict:
    """Official encoder arguments to those of ``ROPIMViT``."""
    known = dict(args)
    for ignored in ('sp', 'num_classes'):
        known.pop(ignored, None)
    dims = known.pop('embed_dim')
    norm = known.pop('norm_layer', 'LayerNorm(eps=1e-6)')
    eps = re.fullmatch(r'LayerNorm\(eps=([0-9.e-]+)\)', norm)
    if eps is None:
        raise ValueError(f'norm_layer {norm!r} is not a LayerNorm(eps=...)')
    pooled = known.pop('use_mean_pooling', False)
    return dict(
        type='ropim_mm.ROPIMViT',
        arch=dict(
            embed_dims=dims,
            num_layers=known.pop('depth'),
            num_heads=known.pop('num_heads'),
            feedforward_channels=int(dims * known.pop('mlp_ratio', 4.0)),
        ),
        img_size=known.pop('img_size', 224),
        patch_size=known.pop('patch_size', 16),
        in_channels=known.pop('in_chans', 3),
        qkv_bias='qv_bias' if known.pop('qkv_bias', True) else False,
        drop_rate=known.pop('drop_rate', 0.0),
        attn_drop_rate=known.pop('attn_drop_rate', 0.0),
        drop_path_rate=known.pop('drop_path_rate', 0.0),
        layer_scale_init_value=known.pop('init_values', None) or 0.0,
        use_abs_pos_emb=known.pop('use_abs_pos_emb', False),
        use_rel_pos_bias=known.pop('use_rel_pos_bias', False),
        use_shared_rel_pos_bias=known.pop('use_shared_rel_pos_bias', False),
        norm_cfg=dict(type='LN', eps=float(eps[1])),
        out_type='avg_featmap' if pooled else 'raw',
        final_norm=not pooled,
        **known,
    )


def check_gradients(case: Case, model: torch.nn.Module) -> Iterator:
    """Every stored gradient, and no gradient where none is stored."""
    grads = convert_state_dict('ropim', case.under('grad/'))
    params = dict(model.named_parameters())
    without = sorted(n for n, p in params.items() if p.grad is None)
    yield exact('parameters with gradient', sorted(grads), sorted(params))
    yield exact(
        'parameters without gradient',
        without,
        sorted(case.info.get('params_without_grad', ())),
    )
    for name, grad in grads.items():
        yield close(f'grad/{name}', params[name].grad, grad)


def pretraining(case: Case) -> Iterator[Comparison]:
    """One step of pretraining: every stored tensor, the loss, gradients."""
    a, info = case.arrays, case.info
    encoder = backbone_config(info['constructor']['VisionTransformerForROPIM'])
    patch, dims = encoder['patch_size'], encoder['arch']['embed_dims']
    channels = encoder['in_channels']
    project_input = info['config'].get('sp', True)
    complement_input = info['config'].get('eye_sp_sketch', False)
    model = ROPIM(
        backbone=encoder,
        neck=dict(
            type='ropim_mm.ROPIMNeck',
            embed_dims=dims,
            patch_size=patch,
            out_channels=channels,
        ),
        head=dict(type='ropim_mm.ROPIMHead', patch_size=patch),
        sketch_scale=float(a['sketch_ratio']),
        project_input=project_input,
        complement_input=complement_input,
    )
    state = convert_state_dict('ropim', case.under('state/'))
    model.load_state_dict(state, strict=True)
    yield exact('names of weights', sorted(state), sorted(model.state_dict()))

    inputs = a['inputs']
    samples = []
    for buckets, signs in zip(a['sketch_hash'], a['sketch_sign'], strict=True):
        sample = DataSample()
        sample.set_field(buckets, 'sketch_hash')
        sample.set_field(signs, 'sketch_sign')
        samples.append(sample)
    yield from _sketches(case, model.sketch(inputs, samples))

    seen = {}
    hooks = [
        model.backbone.patch_embed.register_forward_hook(
            lambda _, __, out: seen.update(patch_tokens=out[0])
        ),
        model.backbone.layers[0].register_forward_pre_hook(
            lambda _, args: seen.update(block0_input=args[0])
        ),
        model.backbone.register_forward_hook(
            lambda _, __, out: seen.update(tokens=out[0])
        ),
        model.neck.register_forward_hook(
            lambda _, __, out: seen.update(pred=out)
        ),
    ]
    model.train()
    loss = model.loss(inputs, samples)['loss']
    loss.backward()
    for hook in hooks:
        hook.remove()

    grid = model.backbone.patch_resolution
    feature_map = seen['tokens'][:, 1:].transpose(1, 2).unflatten(2, grid)
    size = tuple(inputs.shape[2:])
    yield close_in_scale(
        'patch_tokens', seen['patch_tokens'], a['patch_tokens']
    )
    yield close_in_scale(
        'block0_input', seen['block0_input'], a['block0_input']
    )
    yield close_in_scale('feature_map', feature_map, a['feature_map'])
    image = model.to_image(seen['pred'], size)
    yield close_in_scale('reconstruction', image, a['reconstruction'])
    residual = model.head.residual(seen['pred'], inputs)
    _, removed = model.projections(inputs, samples)
    optional = dict(
        residual_patches=residual.transpose(1, 2),
        projected_residual=removed(residual).transpose(1, 2),
    )
    for name, value in optional.items():
        if name in a:
            yield close_in_scale(name, value, a[name])
    yield close('loss', loss, a['loss'])
    yield close('loss in manifest', loss, torch.tensor(info['loss']))
    yield from check_gradients(case, model)


def _sketches(case: Case, sketch) -> Iterator[Comparison]:
    """The stored matrices from our hash and signs, applied to the identity."""
    a = case.arrays
    batch, tokens = a['sketch_hash'].shape
    eye = torch.eye(tokens).expand(batch, -1, -1)
    projection = sketch.project(eye)
    yield close('projection_generated', projection, a['projection_generated'])
    if 'projection_used' in a:
        used = sketch.complement(eye)
        yield close('projection_used', used, a['projection_used'])
    columns = a['sketch_matrix'].shape[-1]
    matrix = F.one_hot(sketch.buckets, columns) * sketch.signs[..., None]
    yield close('sketch_matrix', matrix, a['sketch_matrix'])


def fine_tuning(case: Case) -> Iterator[Comparison]:
    """A pretraining checkpoint loaded for fine-tuning, and one step."""
    a, info = case.arrays, case.info
    encoder = backbone_config(info['constructor']['finetune'])
    classes = info['constructor']['finetune']['num_classes']
    out_type = encoder.pop('out_type')
    model = ImageClassifier(
        backbone=dict(
            encoder,
            out_type='cls_token' if out_type == 'raw' else out_type,
        ),
        head=dict(
            type='LinearClsHead',
            num_classes=classes,
            in_channels=encoder['arch']['embed_dims'],
        ),
    )
    official = convert_state_dict('ropim', case.under('state/'))
    fresh = {
        k: v
        for k, v in official.items()
        if k.startswith(('backbone.ln', 'head.')) and '.attn.' not in k
    }
    pretrained = convert_state_dict('ropim', case.under('ckpt/'))
    backbone = {
        k: v for k, v in pretrained.items() if k.startswith('backbone.')
    }
    result = model.load_state_dict(backbone | fresh, strict=False)
    yield exact('missing keys', result.missing_keys, [])
    for key, value in official.items():
        loaded = model.state_dict()[key]
        if key.endswith('relative_position_index'):
            yield exact(f'state/{key}', loaded, value)
        else:
            yield close(f'state/{key}', loaded, value)

    seen = {}
    blocks = model.backbone.layers
    blocks[0].register_forward_hook(
        lambda _, __, out: seen.update(first_block=out)
    )
    blocks[-1].register_forward_hook(
        lambda _, __, out: seen.update(last_block=out)
    )
    model.train()
    features = model.extract_feat(a['inputs'])[-1]
    logits = model.head((features,))
    log_probs = logits.log_softmax(-1)
    loss = -(a['soft_targets'] * log_probs).sum(-1).mean()
    loss.backward()
    yield close_in_scale('first_block', seen['first_block'], a['first_block'])
    yield close_in_scale('last_block', seen['last_block'], a['last_block'])
    yield close('features', features, a['features'])
    yield close('logits', logits, a['logits'])
    yield close('loss', loss, a['loss'])
    yield close('loss in manifest', loss, torch.tensor(info['loss']))
    targets = a['targets']
    plain = F.cross_entropy(logits, targets)
    smooth = F.cross_entropy(logits, targets, label_smoothing=0.1)
    for name, value in (('loss_ce', plain), ('loss_label_smoothing', smooth)):
        if name in a:
            yield close(name, value, a[name])
    yield from check_gradients(case, model)
    for key, groups in info.items():
        match = re.fullmatch(r'layer_decay_(\d+)p(\d+)_groups', key)
        if match:
            rate = float(f'{match[1]}.{match[2]}')
            yield from _groups(key, model, rate, groups)


def _groups(
    key: str, model: torch.nn.Module, rate: float, groups: dict
) -> Iterator[Comparison]:
    """Learning rate scale and weight decay of every parameter, exactly."""
    decay = max(g['weight_decay'] for g in groups.values())
    wrapper: OptimWrapper = LayerDecayOptimWrapperConstructor(
        optim_wrapper_cfg=dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=1.0, weight_decay=decay),
        ),
        paramwise_cfg=dict(layer_decay_rate=rate),
    )(model)
    of_param = {
        id(p): (g['lr'], g['weight_decay'])
        for g in wrapper.optimizer.param_groups
        for p in g['params']
    }
    ours = {n: of_param[id(p)] for n, p in model.named_parameters()}
    # The converter renames state dicts; stand-ins carry the numbers along.
    stand_ins = {n: torch.empty(0) for n in groups}
    renamed = convert_state_dict('ropim', stand_ins)
    theirs = {
        new: (groups[old]['lr_scale'], groups[old]['weight_decay'])
        for old, new in zip(groups, renamed, strict=True)
    }
    yield exact(f'{key}: parameters', sorted(ours), sorted(theirs))
    for name, (scale, weight_decay) in theirs.items():
        yield close(
            f'{key}: lr scale of {name}',
            torch.tensor(ours[name][0], dtype=torch.float64),
            torch.tensor(scale, dtype=torch.float64),
            relative=1e-12,
            floor=0.0,
        )
        yield exact(
            f'{key}: weight decay of {name}', ours[name][1], weight_decay
        )


def schedule(case: Case) -> Iterator[Comparison]:
    """Peak, end and warm-up length exactly; the curve's deviation printed.

    The released scheduler steps one iteration late and evaluates the cosine
    at the absolute iteration, so that its rate jumps when warm-up ends. Ours
    (MMEngine's LinearLR and CosineAnnealingLR) does neither on purpose.
    """
    config, a = case.info['config'], case.arrays
    per_epoch = config['iters_per_epoch']
    total = config['epochs'] * per_epoch
    warm = config['warmup_epochs'] * per_epoch
    curve, scales = a['lr_used'].double(), a['group_scale'].double()
    ours = learning_rates(config, scales.tolist())

    # The rate after the last iteration lies on the same curve.
    if 'lr_after_last' in a:
        late_curve = torch.cat((curve, a['lr_after_last'].double()[None]))
    else:
        late_curve = curve
    # What the released curve was made of, recovered from the curve.
    late = torch.arange(warm, len(late_curve) - 1, dtype=torch.float64).div(
        total
    )
    peak, end, misfit = _cosine_ends(late, late_curve[warm + 1 :])
    yield exact('the released curve is a cosine', misfit < 1e-9, True)
    start = torch.arange(total - warm, dtype=torch.float64) / (total - warm)
    our_peak, our_end, misfit = _cosine_ends(start, ours[warm:])
    yield exact('our curve is a cosine', misfit < 1e-9, True)

    tight = dict(relative=1e-9, floor=0.0)
    yield close('peak', ours.max(0).values, peak, **tight)
    yield close('peak of the cosine', our_peak, peak, **tight)
    yield close(
        'peak of the config', peak, config['base_lr'] * scales, **tight
    )
    yield close('end value', our_end, end, **tight)
    if warm:
        rising = (ours.diff(dim=0) > 0).all(1)
        length = int(rising.long().cumprod(0).sum()) + 1
        yield exact('warm-up iterations', length, warm)
        # Its first two iterations both run at the start value.
        steps = (peak - curve[0]) / (curve[2] - curve[1])
        yield close(
            'warm-up iterations of the released curve',
            steps,
            torch.full_like(steps, float(warm)),
            **tight,
        )
    deviation = (ours - curve).abs().max().item()
    relative = deviation / curve.max().item()
    yield Comparison(
        'learning rate curve',
        deviation,
        relative,
        0.0,
        'differs on purpose: no late step, no jump after warm-up '
        f'(largest difference {relative:.1%} of the peak)',
    )


def _cosine_ends(
    time: torch.Tensor, rates: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Where a half cosine comes from and goes to, from points on it.

    Args:
        time: (n,) in [0, 1): 0 is the start, 1 the end.
        rates: (n, groups).

    Returns:
        Start and end value of each group, and by how much of the largest
        rate the points miss that cosine.
    """
    phase = (1 + torch.cos(torch.pi * time)) / 2
    design = torch.stack((phase, 1 - phase), dim=1)
    start, end = torch.linalg.lstsq(design, rates).solution
    misfit = (design @ torch.stack((start, end)) - rates).abs().max()
    return start, end, (misfit / rates.max()).item()


def learning_rates(config: dict, scales: list[float]) -> torch.Tensor:
    """Our rates for a released schedule.

    Args:
        config: ``epochs``, ``iters_per_epoch``, ``warmup_epochs``,
            ``base_lr``, ``warmup_lr``, ``min_lr``.
        scales: Factor of each parameter group.

    Returns:
        (iterations, groups) float64: the rate in force at every iteration.
    """
    base, epochs = config['base_lr'], config['epochs']
    warm, per_epoch = config['warmup_epochs'], config['iters_per_epoch']
    groups = [
        dict(params=[torch.nn.Parameter(torch.zeros(1))], lr=base * s)
        for s in scales
    ]
    optimizer = torch.optim.SGD(groups)
    configs = [
        dict(
            type='LinearLR',
            start_factor=config['warmup_lr'] / base,
            begin=0,
            end=warm,
        ),
        dict(
            type='CosineAnnealingLR',
            eta_min=config['min_lr'],
            begin=warm,
            end=epochs,
        ),
    ]
    schedulers = [
        PARAM_SCHEDULERS.build(
            dict(
                cfg,
                by_epoch=True,
                convert_to_iter_based=True,
                epoch_length=per_epoch,
                optimizer=optimizer,
            )
        )
        for cfg in (configs if warm else configs[1:])
    ]
    rates = []
    for _ in range(epochs * per_epoch):
        rates.append([g['lr'] for g in optimizer.param_groups])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return torch.tensor(rates, dtype=torch.float64)


def generator(case: Case) -> Iterator[Comparison]:
    """Stored sketches: matrices from hash and sign; sizes; ours drawn."""
    ratio = 0.14  # what the released generator knows, whatever its threshold
    for name in sorted(n for n in case.arrays if n.endswith('/hash')):
        stored = case.under(name[: -len('hash')])
        tokens, size = stored['S'].shape
        # Every token meets itself with the square of its sign.
        ratio = round(float(stored['P'][0, 0]), 6)
        yield exact(f'{name}: buckets', num_buckets(tokens, ratio), size)
        ours = make_sketch(
            stored['hash'][None], stored['sign'][None], size, scale=ratio
        )
        matrix = F.one_hot(ours.buckets[0], size) * ours.signs[0, :, None]
        yield close(f'{name}: S', matrix, stored['S'])
        projection = ours.project(torch.eye(tokens)[None])[0]
        yield close(f'{name}: P', projection, stored['P'])
        if 'eigvals' in stored:
            values = torch.linalg.eigvalsh(projection.double())
            yield close(f'{name}: eigenvalues', values, stored['eigvals'])
        buckets, signs = sample_sketch(1, tokens, size)
        loads = torch.bincount(buckets[0], minlength=size)
        theirs = torch.bincount(stored['hash'], minlength=size)
        yield exact(
            f'{name}: drawn bucket sizes',
            loads.sort().values,
            theirs.sort().values,
        )
        # Which of the two is one more is a coin where the number is odd.
        balance = stored['sign'].sum().abs()
        yield close(f'{name}: drawn signs balance', signs.sum().abs(), balance)
    for tokens, entry in case.info.get('size_survey', {}).items():
        count = int(tokens)
        size = num_buckets(count, ratio)
        yield exact(f'{tokens} tokens: buckets', size, entry['k_prime'])
        buckets, _ = sample_sketch(2, count, size)
        loads = torch.bincount(buckets[1], minlength=size)
        spread = int(loads.max() - loads.min())
        yield exact(
            f'{tokens} tokens: spread of bucket sizes',
            spread,
            int(count % size > 0),
        )
