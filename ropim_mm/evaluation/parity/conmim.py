"""Reference vectors of ConMIM."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import torch
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample
from torch.nn import functional as F

from ...checkpoints.official import convert_state_dict, dropped_names
from ...checkpoints.official.conmim import join
from ...datasets.transforms import BlockMask, RandomCellMask
from ...engine.momentum import cosine_momentum
from ...models import ConMIM
from .cases import Case
from .common import (
    check_gradients,
    fine_tuning_step,
    learning_rates,
    take_architecture,
    take_norm,
)
from .compare import (
    FLOOR,
    RELATIVE,
    Comparison,
    close,
    close_in_scale,
    exact,
)

TIGHT = dict(relative=1e-9, floor=1e-12)


def run(case: Case) -> Iterator[Comparison]:
    """Replay one case; its contents say of which kind it is.

    Raises:
        ValueError: No known kind of case holds such arrays.
    """
    names = set(case.arrays)
    if {'inputs_aug', 'feat_full'} <= names:
        return pretraining(case)
    if {'logits', 'soft_targets'} <= names:
        return fine_tuning(case)
    if {'momentum', 'lr'} <= names:
        return schedules(case)
    if any(n.endswith(('/masks', '/first_masks')) for n in names):
        return masks(case)
    raise ValueError(
        f'case {case.name!r} holds {sorted(names)[:8]}..., which is no known '
        'kind of ConMIM case (pretraining, fine-tuning, schedules, masks)'
    )


def backbone_config(args: dict) -> dict:
    """Official encoder arguments to those of ``ConMIMViT``."""
    known = dict(args)
    for other_part in (
        'vocab_size',
        'dim',
        'mlp_dim',
        'use_mlp_projectors',
        'num_classes',
    ):
        known.pop(other_part, None)
    pooled = known.pop('use_mean_pooling', False)
    return dict(
        type='ropim_mm.ConMIMViT',
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
    """Loss and gradients, the optimizer's step, then the copy's."""
    a, info = case.arrays, case.info
    args = info['constructor']
    encoder = backbone_config(args)
    model = ConMIM(
        backbone=dict(encoder, with_mask_token=True),
        neck=dict(
            type='ropim_mm.ConMIMNeck',
            in_channels=encoder['arch']['embed_dims'],
            hid_channels=args['mlp_dim'],
            out_channels=args['dim'],
        ),
        head=dict(type='ropim_mm.ConMIMHead', temperature=a['temp'].item()),
    )
    student = case.under('state/')
    state = join(
        convert_state_dict('conmim', student),
        convert_state_dict('conmim', case.under('teacher/')),
    )
    model.load_state_dict(state, strict=True)
    yield exact('names of weights', sorted(state), sorted(model.state_dict()))
    yield exact(
        'dropped: an output layer without gradient',
        dropped_names('conmim', student),
        [n for n in info['params_without_grad'] if n.startswith('lm_head')],
    )

    seen = {}
    parts = dict(
        tokens_student=model.backbone,
        tokens_teacher=model.momentum.backbone,
        feat=model.neck,
        feat_full=model.momentum.neck,
    )
    hooks = [
        part.register_forward_hook(
            lambda _, __, out, name=name: seen.update(
                {name: out[0] if isinstance(out, tuple) else out}
            )
        )
        for name, part in parts.items()
    ]
    model.train()
    before = {n: b.clone() for n, b in model.momentum.named_buffers()}
    grid = model.backbone.patch_resolution
    samples = []
    for mask in a['mask']:
        sample = DataSample()
        sample.set_mask(mask.view(grid))
        samples.append(sample)
    loss = model.loss([a['inputs'], a['inputs_aug']], samples)['loss']
    loss.backward()
    for hook in hooks:
        hook.remove()
    for name in ('feat', 'feat_full'):
        seen[name] = seen[name][:, 1:]
    for name, value in seen.items():
        yield close_in_scale(name, value, a[name])

    masked = a['mask']
    counts = masked.sum(1).tolist()
    yield exact('masked', counts, info['config']['masked_per_image'])
    positions = masked.nonzero()[:, 1]
    yield exact('labels', positions, a['labels'])
    if 'logits' in a:
        x, y = (F.normalize(seen[n], dim=-1) for n in ('feat', 'feat_full'))
        logits = x @ y.transpose(1, 2) / a['temp'].float()
        yield close_in_scale('logits', logits[masked], a['logits'])
    yield close('loss', loss, a['loss'])
    yield close('loss in manifest', loss, torch.tensor(info['loss']))
    yield from _gradients(case, model)
    yield from _after_the_step(case, model, before)


def _gradients(case: Case, model: ConMIM) -> Iterator[Comparison]:
    """As everywhere; rounding is judged by a tensor's scale where need be.

    Gradients of 10 come out of BatchNorms as differences of larger ones. The
    same step in float64 is up to 2.6 of the elementwise tolerance away from
    the stored numbers, and from ours in float32 up to 3.4.

    The bias of the encoder's last norm adds the same to all tokens, which the
    projector's first BatchNorm takes away again in training: its gradient is
    0, and what is stored is the rounding of a sum that cancels. The terms of
    that sum have the size of those of the norm's weight.
    """
    stored = convert_state_dict('conmim', case.under('grad/'))
    shift, scale = 'backbone.ln1.bias', 'backbone.ln1.weight'
    cancels = model.neck.bn0.training and {shift, scale} <= set(stored)
    for item in check_gradients(case, model, 'conmim'):
        name = item.name.removeprefix('grad/')
        if cancels and name == shift:
            size = stored[scale].abs().max().item()
            yield close(
                item.name,
                model.get_parameter(name).grad,
                stored[name],
                relative=0.0,
                floor=FLOOR + RELATIVE * size,
                note='0 but for rounding, since a BatchNorm follows: relative '
                f'to the largest element of grad/{scale}',
            )
        elif item.ok or name not in stored:
            yield item
        else:
            ours = model.get_parameter(name).grad
            yield close_in_scale(item.name, ours, stored[name])


def _after_the_step(
    case: Case, model: ConMIM, before: dict[str, torch.Tensor]
) -> Iterator[Comparison]:
    """Plain gradient descent, then the momentum copy; all buffers.

    Args:
        case: The case.
        model: After backward.
        before: Buffers of the copy before its forward.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    start = {n: t.clone() for n, t in model.state_dict().items()}
    rate = case.info['config']['sgd_lr']
    torch.optim.SGD(trained, lr=rate).step()
    model.update_momentum_copy(case.arrays['momentum'].item())
    ours = model.state_dict()
    for group, prefix in (
        ('student_after', ''),
        ('student_buffers_after', ''),
        ('teacher_after', 'momentum.'),
    ):
        stored = convert_state_dict('conmim', case.under(f'{group}/'))
        for name, value in stored.items():
            label, own = f'{group}/{name}', ours[prefix + name]
            if not value.is_floating_point():
                yield exact(label, own, value)
                continue
            item = close(label, own, value)
            if not item.ok and group == 'student_after':
                # What the step added has the rounding of the gradient.
                own, value = own - start[name], value - start[name]
                item = close_in_scale(f'{label}: the step', own, value)
            yield item
    after = dict(model.momentum.named_buffers())
    for key, names in (
        ('buffers_not_touched_by_ema', sorted(after)),
        (
            'teacher_buffers_changed_by_own_forward',
            sorted(n for n in after if not torch.equal(after[n], before[n])),
        ),
    ):
        listed = {n: torch.empty(0) for n in case.info[key]}
        yield exact(key, names, sorted(convert_state_dict('conmim', listed)))


def fine_tuning(case: Case) -> Iterator[Comparison]:
    """The momentum copy's checkpoint loaded for fine-tuning, and one step."""
    info = case.info
    encoder = backbone_config(info['constructor']['finetune'])
    out_type = encoder.pop('out_type')
    model = ImageClassifier(
        backbone=dict(
            encoder,
            out_type='cls_token' if out_type == 'raw' else out_type,
        ),
        head=dict(
            type='LinearClsHead',
            num_classes=info['constructor']['finetune']['num_classes'],
            in_channels=encoder['arch']['embed_dims'],
        ),
    )
    official = convert_state_dict('conmim', case.under('state/'))
    fresh = {
        k: v
        for k, v in official.items()
        if k.startswith(('backbone.ln', 'head.'))
    }
    pretrained = convert_state_dict('conmim', case.under('ckpt/'))
    backbone = {
        k: v for k, v in pretrained.items() if k.startswith('backbone.')
    }
    result = model.load_state_dict(backbone | fresh, strict=False)
    yield exact('missing keys', result.missing_keys, [])
    own = model.state_dict()
    yield exact('names of weights', sorted(own), sorted(official))
    for key, value in official.items():
        if key.endswith('relative_position_index'):
            yield exact(f'state/{key}', own[key], value)
        else:
            yield close(f'state/{key}', own[key], value)
    yield from fine_tuning_step(case, model, 'conmim')


def schedules(case: Case) -> Iterator[Comparison]:
    """Momentum, learning rate and weight decay of every iteration."""
    config, a = case.info['config'], case.arrays
    total = config['epochs'] * config['iters_per_epoch']
    momentum = torch.tensor(
        [
            cosine_momentum(config['t_momentum'], 1.0, i, total)
            for i in range(total)
        ],
        dtype=torch.float64,
    )
    yield close('momentum', momentum, a['momentum'], **TIGHT)
    warm = config['warmup_epochs'] * config['iters_per_epoch']
    lengths = dict(lr=warm)
    if 'lr_warmup_steps' in a:
        lengths['lr_warmup_steps'] = config['lr_warmup_steps_uses']
    for name, length in lengths.items():
        ours = learning_rates(
            config['lr'],
            config['min_lr'],
            total,
            length,
            config.get('warmup_start', 0.0),
        )
        yield close(name, ours[:, 0], a[name], **TIGHT)
    if 'wd' in a:
        constant = a['wd'][:1].expand_as(a['wd'])
        yield close('weight decay is constant', constant, a['wd'], **TIGHT)


def masks(case: Case) -> Iterator[Comparison]:
    """Masks of the same random numbers, one by one and counted."""
    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        for name, config in case.info['cases'].items():
            if 'numpy_seed' in config:
                yield from _cell_masks(case, name, config)
            else:
                yield from _block_masks(case, name, config)
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


def _cell_masks(case: Case, name: str, config: dict) -> Iterator[Comparison]:
    stored = case.arrays[f'{name}/masks'].bool()
    patch = config['model_patch_size']
    sampler = RandomCellMask(
        config['input_size'] // patch,
        config['mask_ratio'],
        config['mask_patch_size'] // patch,
    )
    yield exact(f'{name}: masked cells', sampler.count, config['mask_count'])
    yield exact(
        f'{name}: masked patches',
        stored.flatten(1).sum(1).tolist(),
        [config['masked_tokens']] * len(stored),
    )
    orders = case.arrays[f'{name}/permutations'].numpy()
    ordered = np.stack([sampler.from_order(order) for order in orders])
    yield exact(f'{name}/permutations', torch.from_numpy(ordered), stored)
    np.random.seed(config['numpy_seed'])
    drawn = np.stack([sampler.transform({})['mask'] for _ in stored])
    yield exact(f'{name}/masks', torch.from_numpy(drawn), stored)


def _block_masks(case: Case, name: str, config: dict) -> Iterator[Comparison]:
    sampler = BlockMask(
        config['window'],
        config['num_masking_patches'],
        config['min_num_patches'],
        config['max_num_patches'],
        config['min_aspect'],
    )
    random.seed(config['python_random_seed'])
    drawn = torch.from_numpy(
        np.stack(
            [sampler.transform({})['mask'] for _ in range(config['draws'])]
        )
    )
    first = case.arrays[f'{name}/first_masks'].bool()
    yield exact(f'{name}/first_masks', drawn[: len(first)], first)
    counts = drawn.flatten(1).sum(1)
    histogram = case.arrays[f'{name}/count_histogram']
    yield exact(
        f'{name}/count_histogram',
        counts.bincount(minlength=len(histogram)),
        histogram,
    )
    frequency = case.arrays[f'{name}/cell_frequency']
    yield close(
        f'{name}/cell_frequency', drawn.double().mean(0), frequency, **TIGHT
    )
    counts = counts.double()
    for key, value in (
        ('mean_count', counts.mean()),
        ('std_count', counts.std(correction=0)),
        ('min_count', counts.min()),
        ('max_count', counts.max()),
    ):
        reference = torch.tensor(config[key], dtype=torch.float64)
        yield close(f'{name}: {key}', value, reference, **TIGHT)
