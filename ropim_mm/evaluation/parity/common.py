"""What the reference vectors of several methods have in common."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from mmengine.optim import OptimWrapper
from torch import nn
from torch.nn import functional as F

from ...checkpoints.official import convert_state_dict
from ...engine import LayerDecayOptimWrapperConstructor
from ...registry import PARAM_SCHEDULERS
from .cases import Case
from .compare import Comparison, close, close_in_scale, exact


def take_architecture(args: dict) -> dict:
    """Remove the official size arguments from ``args``; ours from them."""
    dims = args.pop('embed_dim')
    return dict(
        embed_dims=dims,
        num_layers=args.pop('depth'),
        num_heads=args.pop('num_heads'),
        feedforward_channels=int(dims * args.pop('mlp_ratio', 4.0)),
    )


def take_norm(args: dict) -> dict:
    """Remove ``norm_layer``, as 'LayerNorm(eps=1e-6)'; ours from it.

    Raises:
        ValueError: It is another layer.
    """
    norm = args.pop('norm_layer', 'LayerNorm(eps=1e-6)')
    eps = re.fullmatch(r'LayerNorm\(eps=([0-9.e-]+)\)', norm)
    if eps is None:
        raise ValueError(f'norm_layer {norm!r} is not a LayerNorm(eps=...)')
    return dict(type='LN', eps=float(eps[1]))


def check_gradients(
    case: Case, model: nn.Module, method: str
) -> Iterator[Comparison]:
    """Every stored gradient, and no gradient where none is stored.

    Frozen parameters (fixed positions, a momentum copy) have none in either.
    """
    grads = convert_state_dict(method, case.under('grad/'))
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    without = sorted(n for n, p in params.items() if p.grad is None)
    yield exact(
        'parameters with gradient',
        sorted(set(params) - set(without)),
        sorted(grads),
    )
    listed = case.info.get('params_without_grad')
    theirs = {n: torch.empty(0) for n in listed or ()}
    if theirs:
        theirs = convert_state_dict(method, theirs)
    yield exact(
        'parameters without gradient',
        without,
        sorted(n for n in theirs if n in params),
    )
    for name, grad in grads.items():
        yield close(f'grad/{name}', params[name].grad, grad)


def fine_tuning_step(
    case: Case, model: nn.Module, method: str
) -> Iterator[Comparison]:
    """One step of a loaded classifier: activations, losses, gradients, rates.

    Args:
        case: Holds ``inputs``, ``soft_targets``, ``features``, ``logits``,
            ``loss``, ``grad/*`` and, some of them, ``first_block``,
            ``last_block``, ``targets``, ``loss_ce``,
            ``loss_label_smoothing``.
        model: MMPretrain's classifier with one of our encoders.
        method: Name of the converter.
    """
    a, info = case.arrays, case.info
    seen = {}
    blocks = model.backbone.layers
    hooks = [
        block.register_forward_hook(
            lambda _, __, out, name=name: seen.update({name: out})
        )
        for name, block in (
            ('first_block', blocks[0]),
            ('last_block', blocks[-1]),
        )
    ]
    model.train()
    features = model.extract_feat(a['inputs'])[-1]
    logits = model.head((features,))
    log_probs = logits.log_softmax(-1)
    loss = -(a['soft_targets'] * log_probs).sum(-1).mean()
    loss.backward()
    for hook in hooks:
        hook.remove()
    for name, tokens in seen.items():
        if name in a:
            yield close_in_scale(name, tokens, a[name])
    yield close('features', features, a['features'])
    yield close('logits', logits, a['logits'])
    yield close('loss', loss, a['loss'])
    yield close('loss in manifest', loss, torch.tensor(info['loss']))
    optional = dict(loss_ce=0.0, loss_label_smoothing=0.1)
    for name, smoothing in optional.items():
        if name in a:
            value = F.cross_entropy(
                logits, a['targets'], label_smoothing=smoothing
            )
            yield close(name, value, a[name])
    yield from check_gradients(case, model, method)
    for key, groups in info.items():
        match = re.fullmatch(r'layer_decay_(\d+)p(\d+)_groups', key)
        if match:
            rate = float(f'{match[1]}.{match[2]}')
            yield from layer_decay_groups(key, model, method, rate, groups)


def layer_decay_groups(
    key: str, model: nn.Module, method: str, rate: float, groups: dict
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
    renamed = convert_state_dict(method, stand_ins)
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


def cosine_ends(
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


def learning_rates(
    peak: float,
    end: float,
    total: int,
    warm: int,
    warm_start: float = 0.0,
    epoch_length: int | None = None,
    scales: tuple[float, ...] = (1.0,),
) -> torch.Tensor:
    """Rates of MMEngine's LinearLR and CosineAnnealingLR, as in our configs.

    Args:
        peak: Rate after warm-up.
        end: Rate at the end.
        total, warm: Length of the run and of its warm-up, in iterations, or
            in epochs where ``epoch_length`` is given.
        warm_start: Rate at the first iteration.
        epoch_length: Iterations an epoch.
        scales: Factor of each parameter group.

    Returns:
        (iterations, groups) float64: the rate in force at every iteration.
    """
    groups = [
        dict(params=[nn.Parameter(torch.zeros(1))], lr=peak * s)
        for s in scales
    ]
    optimizer = torch.optim.SGD(groups)
    cfgs = [dict(type='CosineAnnealingLR', eta_min=end, begin=warm, end=total)]
    if warm:
        factor = warm_start / peak
        cfgs.insert(
            0,
            dict(
                type='LinearLR',
                # MMEngine wants more than 0.
                start_factor=max(factor, 1e-12),
                begin=0,
                end=warm,
            ),
        )
    schedulers = []
    for cfg in cfgs:
        if epoch_length:
            cfg.update(
                by_epoch=True,
                convert_to_iter_based=True,
                epoch_length=epoch_length,
            )
        else:
            cfg.update(by_epoch=False)
        schedulers.append(
            PARAM_SCHEDULERS.build(dict(cfg, optimizer=optimizer))
        )
    rates = []
    for _ in range(total * (epoch_length or 1)):
        rates.append([g['lr'] for g in optimizer.param_groups])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return torch.tensor(rates, dtype=torch.float64)
