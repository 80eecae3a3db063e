"""Reference vectors of ROPIM."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample
from torch.nn import functional as F

from ...checkpoints.official import convert_state_dict
from ...models import ROPIM
from ...models.layers import make_sketch, num_buckets, sample_sketch
from .cases import Case
from .common import (
    check_gradients,
    cosine_ends,
    fine_tuning_step,
    learning_rates,
    take_architecture,
    take_norm,
)
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
    pooled = known.pop('use_mean_pooling', False)
    return dict(
        type='ropim_mm.ROPIMViT',
        arch=take_architecture(known),
        norm_cfg=take_norm(known),
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
        out_type='avg_featmap' if pooled else 'raw',
        final_norm=not pooled,
        **known,
    )


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
    yield from check_gradients(case, model, 'ropim')


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
    info = case.info
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

    yield from fine_tuning_step(case, model, 'ropim')


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
    ours = learning_rates(
        config['base_lr'],
        config['min_lr'],
        config['epochs'],
        config['warmup_epochs'],
        config['warmup_lr'],
        per_epoch,
        tuple(scales.tolist()),
    )

    # The rate after the last iteration lies on the same curve.
    if 'lr_after_last' in a:
        late_curve = torch.cat((curve, a['lr_after_last'].double()[None]))
    else:
        late_curve = curve
    # What the released curve was made of, recovered from the curve.
    late = torch.arange(warm, len(late_curve) - 1, dtype=torch.float64).div(
        total
    )
    peak, end, misfit = cosine_ends(late, late_curve[warm + 1 :])
    yield exact('the released curve is a cosine', misfit < 1e-9, True)
    start = torch.arange(total - warm, dtype=torch.float64) / (total - warm)
    our_peak, our_end, misfit = cosine_ends(start, ours[warm:])
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
