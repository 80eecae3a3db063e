"""Reference vectors of R-MAE."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from mmpretrain.structures import DataSample

from ...checkpoints.official import convert_state_dict
from ...datasets.regions import (
    binary_regions,
    felzenszwalb_maps,
    select_regions,
)
from ...engine import LayerDecayOptimWrapperConstructor
from ...models import RMAE
from ...models.layers import patchify
from .cases import Case
from .common import (
    check_gradients,
    learning_rates,
    take_architecture,
    take_norm,
)
from .compare import Comparison, close, close_in_scale, exact

TIGHT = dict(relative=1e-9, floor=0.0)


def run(case: Case) -> Iterator[Comparison]:
    """Replay one case; its contents say of which kind it is.

    Raises:
        ValueError: No known kind of case holds such arrays.
    """
    names = set(case.arrays)
    if {'latent', 'shuffle_ids'} <= names:
        return pretraining(case)
    if any(n.endswith('/label_maps') for n in names):
        return selection(case)
    if 'image' in names and 'scales' in case.info:
        return segmentation(case)
    if 'lr_used' in names:
        return schedule(case)
    raise ValueError(
        f'case {case.name!r} holds {sorted(names)[:8]}..., which is no known '
        'kind of R-MAE case (pretraining, region selection, segmentation, '
        'schedule)'
    )


def model_config(info: dict) -> dict:
    """Official arguments to a config of ``RMAE``."""
    args = dict(info['constructor'])
    # How the loader draws, which the vectors have stored.
    args.pop('region_sample_type', None)
    mlp_ratio = args.get('mlp_ratio', 4.0)
    sizes = dict(
        img_size=args.pop('img_size', 224),
        patch_size=args.pop('patch_size', 16),
    )
    channels = args.pop('in_chans', 3)
    arch, norm = take_architecture(args), take_norm(args)
    dims = arch['embed_dims']
    decoder = dict(
        decoder_dims=args.pop('decoder_embed_dim'),
        decoder_depth=args.pop('decoder_depth'),
        decoder_heads=args.pop('decoder_num_heads'),
    )
    norm_pix = args.pop('norm_pix_loss')
    pixel_branch = {}
    if args.pop('use_mae_loss'):
        pixel_branch = dict(
            neck=dict(
                type='ropim_mm.RMAENeck',
                embed_dims=dims,
                out_channels=channels,
                mlp_ratio=mlp_ratio,
                **sizes,
                **decoder,
            ),
            head=dict(
                type='ropim_mm.RMAEHead',
                patch_size=sizes['patch_size'],
                norm_pix=norm_pix,
            ),
        )
    config = dict(
        type='ropim_mm.RMAE',
        backbone=dict(
            type='ropim_mm.RMAEViT',
            arch=arch,
            norm_cfg=norm,
            in_channels=channels,
            out_type='raw',
            **sizes,
        ),
        region_branch=dict(
            type='ropim_mm.RMAERegionBranch',
            embed_dims=dims,
            enc_dims=args.pop('region_enc_dim'),
            enc_depth=args.pop('region_enc_depth'),
            enc_heads=args.pop('region_enc_num_heads'),
            dec_dims=args.pop('region_dec_dim'),
            dec_depth=args.pop('region_dec_depth'),
            dec_heads=args.pop('region_dec_num_heads'),
            cross_layers=args.pop('region_cross_layer'),
            bg_loss_weight=args.pop('bg_loss_weight'),
            mlp_ratio=mlp_ratio,
            **sizes,
        ),
        num_regions=args.pop('num_region'),
        mask_ratio=info['call']['mask_ratio'],
        region_mask_ratio=args.pop('region_mask_ratio'),
        pixel_loss_weight=args.pop('mae_loss_weight'),
        region_loss_weight=args.pop('region_loss_weight'),
        **pixel_branch,
    )
    if args:
        raise ValueError(f'unknown constructor arguments {sorted(args)}')
    return config


def pretraining(case: Case) -> Iterator[Comparison]:
    """One step of pretraining: every stored tensor, the losses, gradients."""
    a, info = case.arrays, case.info
    config = model_config(info)
    del config['type']
    model = RMAE(**config)
    state = convert_state_dict('rmae', case.under('state/'))
    yield exact('names of weights', sorted(state), sorted(model.state_dict()))
    for name, table in model.state_dict().items():
        if name.endswith('pos_embed'):
            yield close(f'made here: {name}', table, state[name])
    model.load_state_dict(state, strict=True)

    inputs, ids = a['inputs'], a['shuffle_ids']
    if 'noise' in a:
        yield exact('shuffle_ids', a['noise'].argsort(dim=1), ids)
    samples = []
    for i, permutation in enumerate(ids):
        sample = DataSample()
        sample.set_field(permutation, 'shuffle_ids')
        if model.num_regions:
            sample.set_field(a['region'][i].bool(), 'regions')
        samples.append(sample)

    seen = {}
    hooks = [
        model.backbone.register_forward_hook(
            lambda _, __, out: seen.update(latent=out[0])
        )
    ]
    if model.num_regions:
        hooks.append(
            model.region_branch.encoder.register_forward_hook(
                lambda _, __, out: seen.update(region_latent=out)
            )
        )
    model.train()
    with torch.no_grad():
        whole = model.predict(inputs, samples)
    seen.update(pred=whole.get('pixels'), pred_region=whole.get('regions'))
    grid = model.backbone.patch_resolution
    if model.num_regions:
        patch = model.backbone.patch_size
        with torch.no_grad():
            memory = model.region_branch.memory.fill(seen['latent'], ids, grid)
        # In the order of the permutation; the class token stays first.
        place = ids.argsort(dim=1)[..., None].expand_as(memory[:, 1:])
        patches = memory[:, 1:].gather(1, place)
        seen['memory'] = torch.cat((memory[:, :1], patches), dim=1)
        target = patchify(a['region'].flatten(0, 1).unsqueeze(1), patch)
        target = target.unflatten(0, a['region'].shape[:2])
        yield exact('target_region', target, a['target_region'])
        yield exact(
            'region_mask', whole['region_mask'].float(), a['region_mask']
        )
    yield exact('mask', whole['mask'].float(), a['mask'])
    for name, value in seen.items():
        if value is not None:
            yield close_in_scale(name, value, a[name])

    losses = model.loss(inputs, samples)
    loss = losses['loss_pixel'] + losses['loss_region']
    loss.backward()
    for hook in hooks:
        hook.remove()
    weights = (model.pixel_loss_weight, model.region_loss_weight)
    for ours, theirs, weight in zip(
        ('loss_pixel', 'loss_region'),
        ('mae_loss', 'region_loss'),
        weights,
        strict=True,
    ):
        yield close(ours, losses[ours], weight * a[theirs])
        yield close(
            f'{theirs} in manifest', a[theirs], torch.tensor(info[theirs])
        )
    yield close('loss', loss, a['loss'])
    yield close('loss in manifest', loss, torch.tensor(info['loss']))
    yield from check_gradients(case, model, 'rmae')
    yield from _weight_decay(info, model)


def _weight_decay(info: dict, model: torch.nn.Module) -> Iterator[Comparison]:
    """Which parameters decay, by our constructor as the configs set it."""
    listed = {n: torch.empty(0) for n in info['no_weight_decay']}
    # The converter finds the expansion block by its number among all names.
    names = {n.removeprefix('state/') for n in info['arrays'] if 'state/' in n}
    stand_ins = {n: torch.empty(0) for n in sorted(names)}
    renamed = dict(
        zip(stand_ins, convert_state_dict('rmae', stand_ins), strict=True)
    )
    wrapper = LayerDecayOptimWrapperConstructor(
        optim_wrapper_cfg=dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
        ),
        paramwise_cfg=dict(no_decay_names=()),
    )(model)
    ours = sorted(
        name
        for group in wrapper.optimizer.param_groups
        for name in group['param_names']
        if group['weight_decay'] == 0
    )
    yield exact('no_weight_decay', ours, sorted(renamed[n] for n in listed))


def selection(case: Case) -> Iterator[Comparison]:
    """Regions of label maps: which masks there are and which are taken."""
    for name, info in case.info['cases'].items():
        stored = case.under(f'{name}/')
        maps = stored['label_maps'].numpy()
        masks = binary_regions(maps)
        counts = [len(np.unique(each)) for each in maps]
        yield exact(
            f'{name}: labels', counts, list(info['distinct_labels_per_map'])
        )
        draws = [
            stored[f'randperm{i}'] for i in range(info['n_randperm_calls'])
        ]
        asked = []

        def replay(n: int, draws=draws, asked=asked) -> torch.Tensor:
            asked.append(n)
            return draws[len(asked) - 1]

        regions, shuffle_ids = select_regions(
            masks,
            info['num_region'],
            info['patch_size'],
            info['region_sample_type'],
            info['filter_small_patches'],
            info['region_mask_ratio'],
            randperm=replay,
        )
        yield exact(f'{name}: draws', asked, [len(d) for d in draws])
        theirs = stored['region'].bool()
        yield exact(f'{name}: regions', regions, theirs)
        if 'shuffle_ids' in stored:
            yield exact(
                f'{name}: shuffle_ids', shuffle_ids, stored['shuffle_ids']
            )
        else:
            yield exact(f'{name}: shuffle_ids', shuffle_ids, None)


def segmentation(case: Case) -> Iterator[Comparison]:
    """Felzenszwalb-Huttenlocher label maps of a photo, exactly."""
    info = case.info
    scales, min_sizes = info['scales'], info['min_sizes']
    maps = felzenszwalb_maps(case.arrays['image'].numpy(), scales, min_sizes)
    yield exact(
        'segments', [len(np.unique(m)) for m in maps], info['segments']
    )
    name = 'fh_' + '_'.join(map(str, scales))
    yield exact(name, torch.from_numpy(maps), case.arrays[name])


def schedule(case: Case) -> Iterator[Comparison]:
    """Peak, end and warm-up length; the curve's deviation printed.

    Half a cosine, the same in both, follows a linear warm-up. The released
    one begins at exactly 0, so that the first update changes nothing, and
    reaches the peak after ``warmup`` updates; MMEngine's begins a little
    above 0 and reaches it with the last of them.
    """
    config, curve = case.info['config'], case.arrays['lr_used'].double()
    peak, total, warm = config['lr'], config['T_max'], config['warmup']
    ours = learning_rates(peak, 0.0, total, warm)[:, 0]
    yield exact('updates', total, len(curve))
    line = peak * torch.arange(warm, dtype=torch.float64) / warm
    yield close('released warm-up', line, curve[:warm], **TIGHT)
    yield close('cosine', ours[warm:], curve[warm:], **TIGHT)
    yield close('peak', ours.max(), curve.max(), **TIGHT)
    rising = (ours.diff() > 0).long().cumprod(0).sum()
    if warm:
        yield exact('warm-up updates', int(rising) + 1, warm)
    deviation = (ours - curve).abs().max().item()
    relative = deviation / curve.max().item()
    yield Comparison(
        'learning rate curve',
        deviation,
        relative,
        0.0,
        'differs on purpose: warm-up ends an update earlier '
        f'(largest difference {relative:.1%} of the peak)',
    )
