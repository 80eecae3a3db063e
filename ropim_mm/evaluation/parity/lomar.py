"""Reference vectors of LoMaR."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample

from ...checkpoints.official import convert_state_dict, dropped_names
from ...errors import InputError
from ...models import LoMaR
from ...models.layers.irpe import (
    IRPEAttention,
    bucket_index,
    num_buckets,
    piecewise_index,
)
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

TIGHT = dict(relative=1e-9, floor=1e-12)


def run(case: Case) -> Iterator[Comparison]:
    """Replay one case; its contents say of which kind it is.

    Raises:
        ValueError: No known kind of case holds such arrays.
    """
    names = set(case.arrays)
    if {'window_top', 'row_mask', 'pred'} <= names:
        return pretraining(case)
    if {'logits', 'soft_targets'} <= names:
        return fine_tuning(case)
    if {'rpe_input', 'rpe_output'} <= names:
        return attention(case)
    if 'piecewise_index' in names:
        return buckets(case)
    if 'lr' in names:
        return schedule(case)
    raise ValueError(
        f'case {case.name!r} holds {sorted(names)[:8]}..., which is no known '
        'kind of LoMaR case (pretraining, fine-tuning, iRPE attention, iRPE '
        'buckets, schedule)'
    )


def backbone_config(args: dict) -> dict:
    """Official encoder arguments to those of ``LoMaRViT``."""
    known = dict(args)
    for other_part in ('norm_pix_loss', 'num_classes', 'global_pool'):
        known.pop(other_part, None)
    return dict(
        type='ropim_mm.LoMaRViT',
        arch=take_architecture(known),
        norm_cfg=take_norm(known),
        img_size=known.pop('img_size', 224),
        patch_size=known.pop('patch_size', 16),
        in_channels=known.pop('in_chans', 3),
        **_pieces(known.pop('irpe', {})),
        **known,
    )


def _pieces(irpe: dict) -> dict:
    """iRPE's alpha, beta and gamma from the one number of the release.

    Raises:
        ValueError: It is another kind of iRPE than LoMaR's.
    """
    expected = dict(
        method='product',
        mode='contextual',
        shared_head=True,
        skip=1,
        rpe_on='k',
    )
    known = {k: v for k, v in irpe.items() if k != 'ratio'}
    if known != {k: expected[k] for k in known if k in expected}:
        raise ValueError(f'irpe is {irpe}; expected {expected} and a ratio')
    ratio = irpe.get('ratio', 1.9)
    return dict(alpha=ratio, beta=2 * ratio, gamma=8 * ratio)


def _model(case: Case, windows: int) -> LoMaR:
    args, call = case.info['constructor'], case.info['call']
    encoder = backbone_config(args)
    encoder.update(out_type='raw', final_norm=True, with_mask_token=True)
    return LoMaR(
        backbone=encoder,
        neck=dict(
            type='ropim_mm.LoMaRNeck',
            embed_dims=args['embed_dim'],
            patch_size=encoder['patch_size'],
            out_channels=encoder['in_channels'],
        ),
        head=dict(
            type='ropim_mm.LoMaRHead',
            norm_pix=args.get('norm_pix_loss', False),
        ),
        window_size=call['window_size'],
        num_windows=windows,
        mask_ratio=call['mask_ratio'],
    )


def pretraining(case: Case) -> Iterator[Comparison]:
    """One step in the rows of the release, and one in those meant.

    A row of the release is an image with a single window; the rows that were
    meant are every image with every window, which is what the algorithm does.
    """
    a, info = case.arrays, case.info
    inputs, tops, lefts = a['inputs'], a['window_top'], a['window_left']
    windows, asked = len(tops), info['call']['num_window']
    model = _model(case, windows)
    state = convert_state_dict('lomar', case.under('state/'))
    model.load_state_dict(state, strict=True)
    model.train()
    yield exact('names of weights', sorted(state), sorted(model.state_dict()))
    yield exact(
        'weights left out',
        dropped_names('lomar', case.under('state/')),
        ['pos_embed'],
    )
    if 'windows_actually_used' in info:
        yield exact('windows', windows, info['windows_actually_used'])
    if windows < asked:
        yield _refused(case, asked)
    yield from _draws(case, model)

    yield exact('row_mask: bool', a['row_mask'].dtype, torch.bool)
    row_image, row_window = a['row_image'], a['row_window']
    samples = _samples(
        tops[row_window, None], lefts[row_window, None], a['row_mask'][:, None]
    )
    yield from _step(case, model, inputs[row_image], samples, '')
    ids = model.windows(inputs[row_image], samples)[:, 0]
    yield exact('row_patches', ids, a['row_patches'])
    yield from check_gradients(case, model, 'lomar')

    model.zero_grad(set_to_none=True)
    rows = torch.arange(len(inputs) * windows)
    yield exact('intended_row_image', rows // windows, a['intended_row_image'])
    yield exact(
        'intended_row_window', rows % windows, a['intended_row_window']
    )
    masks = a['intended_row_mask'].view(len(inputs), windows, -1)
    samples = _samples(
        tops.expand(len(inputs), -1), lefts.expand(len(inputs), -1), masks
    )
    yield from _step(case, model, inputs, samples, 'intended_')
    grads = convert_state_dict('lomar', case.under('intended_grad/'))
    params = dict(model.named_parameters())
    for name, grad in grads.items():
        yield close(f'intended_grad/{name}', params[name].grad, grad)


def _refused(case: Case, asked: int) -> Comparison:
    """More windows than free positions: fewer in the release, refused here."""
    try:
        _model(case, asked).windows(case.arrays['inputs'], None)
    except InputError as error:
        return exact(
            f'{asked} windows refused', 'num_windows' in str(error), 1
        )
    return exact(f'{asked} windows refused', 0, 1)


def _draws(case: Case, model: LoMaR) -> Iterator[Comparison]:
    """What follows from windows and noise: patches and masks."""
    a, info = case.arrays, case.info
    batch, windows = len(a['inputs']), len(a['window_top'])
    count = a['drawn_mask_ids'].shape[-1]
    yield exact('masked patches of a window', model.num_masked, count)
    if 'masked_per_window' in info:
        yield exact('masked_per_window', count, info['masked_per_window'])
    samples = _samples(
        a['window_top'].expand(batch, -1), a['window_left'].expand(batch, -1)
    )
    ids = model.windows(a['inputs'], samples)
    for image in ids:
        yield exact('window_patches', image, a['window_patches'])
    positions = a['drawn_noise'].argsort(dim=-1)[..., :count]
    drawn = ids.gather(-1, positions)
    yield exact('drawn_mask_ids', drawn, a['drawn_mask_ids'])
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    mask.scatter_(-1, positions, True)
    yield exact(
        'intended_row_mask',
        mask.view(batch * windows, -1),
        a['intended_row_mask'],
    )


def _samples(
    tops: torch.Tensor,
    lefts: torch.Tensor,
    masks: torch.Tensor | None = None,
) -> list[DataSample]:
    samples = []
    for i in range(len(tops)):
        sample = DataSample()
        sample.set_field(tops[i], 'window_tops')
        sample.set_field(lefts[i], 'window_lefts')
        if masks is not None:
            sample.set_field(masks[i], 'window_mask')
        samples.append(sample)
    return samples


def _step(
    case: Case,
    model: LoMaR,
    inputs: torch.Tensor,
    samples: list[DataSample],
    prefix: str,
) -> Iterator[Comparison]:
    """Activations, prediction and loss; gradients are left in the model."""
    a = case.arrays
    with torch.no_grad():
        seen = model.reconstruct(inputs, samples)
    for name in ('encoder_input', 'encoder_tokens', 'pred'):
        if f'{prefix}{name}' in a:
            yield close_in_scale(
                f'{prefix}{name}', getattr(seen, name), a[f'{prefix}{name}']
            )
    yield exact(
        f'{prefix}row_mask replayed', seen.mask, a[f'{prefix}row_mask']
    )
    loss = model.loss(inputs, samples)['loss']
    loss.backward()
    yield close(f'{prefix}loss', loss, a[f'{prefix}loss'])
    yield close(
        f'{prefix}loss in manifest',
        loss,
        torch.tensor(case.info[f'{prefix}loss']),
    )


def fine_tuning(case: Case) -> Iterator[Comparison]:
    """A loaded classifier, and one step of it."""
    args = case.info['constructor']
    encoder = backbone_config(args)
    pooled = args.get('global_pool', True)
    model = ImageClassifier(
        backbone=dict(
            encoder,
            out_type='avg_featmap' if pooled else 'cls_token',
            final_norm=not pooled,
        ),
        head=dict(
            type='LinearClsHead',
            num_classes=args['num_classes'],
            in_channels=encoder['arch']['embed_dims'],
        ),
    )
    state = convert_state_dict('lomar', case.under('state/'))
    model.load_state_dict(state, strict=True)
    yield exact('names of weights', sorted(state), sorted(model.state_dict()))
    yield from _left_and_fresh(case, model)
    yield from fine_tuning_step(case, model, 'lomar')


def _left_and_fresh(case: Case, model: ImageClassifier) -> Iterator:
    """What a pretraining file lacks for this classifier, and has too much."""
    info = case.info
    own = set(model.state_dict())
    for key in ('missing_keys', 'unexpected_keys'):
        if key not in info:
            continue
        names = [n for n in info[key] if n not in dropped_names('lomar', [n])]
        names = convert_state_dict('lomar', dict.fromkeys(names, 0))
        expected = names if key == 'missing_keys' else ()
        yield exact(
            f'{key} of the release',
            sorted(n for n in names if n in own),
            sorted(expected),
        )


def attention(case: Case) -> Iterator[Comparison]:
    """Attention with iRPE, and its term of the logits alone."""
    a, args = case.arrays, case.info['constructor']
    grid = case.info['grid']
    grid = (grid, grid) if isinstance(grid, int) else tuple(grid)
    module = IRPEAttention(
        args['dim'], args['num_heads'], args.get('qkv_bias', True)
    )
    named = {
        f'blocks.0.attn.{name}': tensor
        for name, tensor in case.under('state/').items()
    }
    state = convert_state_dict('lomar', named)
    prefix = 'backbone.layers.0.attn.'
    module.load_state_dict({k.removeprefix(prefix): state[k] for k in state})
    index = module.rpe_k.index(grid, a['x'].device)
    for mode in (True, False):
        # Written out in training, PyTorch's own attention otherwise.
        with torch.set_grad_enabled(mode):
            y = module(a['x'], index)
        yield close_in_scale(f'y, {"" if mode else "no "}grad', y, a['y'])
    term = module.rpe_k(a['rpe_input'], index)
    yield close_in_scale('rpe_output', term, a['rpe_output'])


def buckets(case: Case) -> Iterator[Comparison]:
    """Index of every offset, bucket of every pair."""
    a = case.arrays
    alpha, beta, gamma = a['alpha_beta_gamma'].tolist()
    pieces = (alpha, beta, gamma)
    index = piecewise_index(a['offsets'], *pieces)
    yield exact('piecewise_index', index, a['piecewise_index'].long())
    count = int(a['num_buckets'])
    yield exact('num_buckets', num_buckets(beta), count)
    for name in sorted(a):
        match = re.fullmatch(r'grid(\d+)(?:x(\d+))?/bucket_ids', name)
        if match:
            rows, columns = int(match[1]), int(match[2] or match[1])
            index = bucket_index((rows, columns), *pieces)
            yield exact(name, index, a[name].long())


def schedule(case: Case) -> Iterator[Comparison]:
    """Peak, end and warm-up length; the curve's deviation printed.

    The release sets the rate before every update from the fraction of the
    epochs gone by, and holds it while gradients accumulate. MMEngine's
    schedulers move at every iteration, and warm up a little above 0.
    """
    config, curve = case.info['config'], case.arrays['lr'].double()
    per_epoch, warm = config['iters'], config['warmup_epochs']
    epochs, peak, end = config['epochs'], config['lr'], config['min_lr']
    step = torch.arange(len(curve))
    held = step - step % per_epoch % config.get('accum_iter', 1)
    time = held.double() / per_epoch
    yield exact('iterations', len(curve), epochs * per_epoch)

    scales = curve[-1] / curve[-1, 0]
    rising = time < warm
    line = peak * time[rising, None] / warm * scales
    yield close('released warm-up', line, curve[rising], **TIGHT)
    phase = (time[~rising] - warm) / (epochs - warm)
    their_peak, their_end, misfit = cosine_ends(phase, curve[~rising])
    yield exact('the released curve is a cosine', misfit < 1e-9, True)

    ours = learning_rates(
        peak,
        end,
        epochs,
        warm,
        epoch_length=per_epoch,
        scales=tuple(scales.tolist()),
    )
    phase = (step - warm * per_epoch)[warm * per_epoch :].double()
    phase = phase / (per_epoch * (epochs - warm))
    our_peak, our_end, misfit = cosine_ends(phase, ours[warm * per_epoch :])
    yield exact('our curve is a cosine', misfit < 1e-9, True)
    yield close('peak', our_peak, their_peak, **TIGHT)
    yield close('peak of the config', our_peak, peak * scales, **TIGHT)
    # The release scales the end with the layer, MMEngine does not.
    yield close('end value', our_end[:1], their_end[:1], **TIGHT)
    length = int((ours[:, 0].diff() > 0).long().cumprod(0).sum()) + 1
    if warm:
        yield exact('warm-up iterations', length, warm * per_epoch)
    deviation = (ours - curve).abs().max().item()
    relative = deviation / curve.max().item()
    yield Comparison(
        'learning rate curve',
        deviation,
        relative,
        0.0,
        'differs on purpose: moves at every iteration (largest difference '
        f'{relative:.1%} of the peak)',
    )
