"""Tiny models of all methods, and batches for them.

What all methods must do alike is tested with these. A new method adds its
line to ``MODELS_OF``.
"""

from collections.abc import Callable
from os import PathLike

import torch
from mmengine.model import BaseModel
from mmpretrain.structures import DataSample

from ropim_mm.models.layers.patches import Size, to_pair
from ropim_mm.registry import MODELS

WIDTH, BLOCKS, HEADS = 16, 2, 2
ARCH = dict(
    embed_dims=WIDTH,
    num_layers=BLOCKS,
    num_heads=HEADS,
    feedforward_channels=32,
)
REGIONS = 2

BEIT = dict(
    out_type='raw',
    final_norm=True,
    use_rel_pos_bias=False,
    use_shared_rel_pos_bias=True,
)


def _ropim(patch: Size, channels: int, **sizes) -> dict:
    return dict(
        type='ropim_mm.ROPIM',
        backbone=dict(type='ropim_mm.ROPIMViT', **BEIT),
        neck=dict(
            type='ropim_mm.ROPIMNeck',
            embed_dims=WIDTH,
            patch_size=patch,
            out_channels=channels,
        ),
        head=dict(type='ropim_mm.ROPIMHead', patch_size=patch),
    )


def _lomar(patch: Size, channels: int, **sizes) -> dict:
    return dict(
        type='ropim_mm.LoMaR',
        window_size=2,
        num_windows=2,
        backbone=dict(
            type='ropim_mm.LoMaRViT',
            out_type='raw',
            final_norm=True,
            with_mask_token=True,
        ),
        neck=dict(
            type='ropim_mm.LoMaRNeck',
            embed_dims=WIDTH,
            patch_size=patch,
            out_channels=channels,
        ),
        head=dict(type='ropim_mm.LoMaRHead'),
    )


def _rmae(patch: Size, channels: int, **sizes) -> dict:
    size = dict(img_size=sizes['img_size'], patch_size=patch)
    return dict(
        type='ropim_mm.RMAE',
        num_regions=REGIONS,
        backbone=dict(type='ropim_mm.RMAEViT', out_type='raw'),
        neck=dict(
            type='ropim_mm.RMAENeck',
            embed_dims=WIDTH,
            out_channels=channels,
            decoder_dims=WIDTH,
            decoder_depth=1,
            decoder_heads=HEADS,
            **size,
        ),
        head=dict(type='ropim_mm.RMAEHead', patch_size=patch),
        region_branch=dict(
            type='ropim_mm.RMAERegionBranch',
            embed_dims=WIDTH,
            enc_dims=8,
            enc_heads=HEADS,
            dec_dims=8,
            dec_depth=2,
            dec_heads=HEADS,
            cross_layers=1,
            **size,
        ),
    )


def _conmim(patch: Size, channels: int, **sizes) -> dict:
    return dict(
        type='ropim_mm.ConMIM',
        backbone=dict(type='ropim_mm.ConMIMViT', with_mask_token=True, **BEIT),
        neck=dict(
            type='ropim_mm.ConMIMNeck',
            in_channels=WIDTH,
            hid_channels=32,
            out_channels=8,
        ),
        head=dict(type='ropim_mm.ConMIMHead'),
    )


MODELS_OF: dict[str, Callable[..., dict]] = dict(
    ropim=_ropim, lomar=_lomar, rmae=_rmae, conmim=_conmim
)
METHODS = tuple(MODELS_OF)
ENCODERS = dict(
    ropim='ROPIMViT', lomar='LoMaRViT', rmae='RMAEViT', conmim='ConMIMViT'
)
# The class of a method's encoder in MMPretrain; LoMaR's is not there.
IN_MMPRETRAIN = dict(
    ropim='BEiTViT', conmim='BEiTViT', rmae='VisionTransformer'
)


def model_config(
    method: str,
    img_size: Size = 32,
    patch_size: Size = 8,
    in_channels: int = 3,
    arch: dict = ARCH,
) -> dict:
    """The model of a pretraining config.

    Args:
        method: One of ``METHODS``.
        img_size: Side or (height, width); at least 3 x 3 patches.
        patch_size: Side or (height, width).
        in_channels: Of the images.
        arch: Of the encoder, ``WIDTH`` wide.
    """
    cfg = MODELS_OF[method](patch_size, in_channels, img_size=img_size)
    cfg['backbone'].update(
        arch=arch,
        img_size=img_size,
        patch_size=patch_size,
        in_channels=in_channels,
    )
    return cfg


def build(method: str, seed: int = 0, **options) -> BaseModel:
    """A model with initial weights, moved off the values that hide errors.

    Args:
        method: One of ``METHODS``.
        seed: Of the weights.
        **options: Of :func:`model_config`.
    """
    torch.manual_seed(seed)
    model = MODELS.build(model_config(method, **options))
    model.init_weights()
    shake(model)
    return model


def shake(module: torch.nn.Module) -> None:
    """Tables, biases and scales that start at a constant get other values."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)


def encoder(method: str, **options) -> torch.nn.Module:
    """The method's encoder as an ordinary backbone."""
    settings = dict(arch=ARCH, img_size=32, patch_size=8)
    module = MODELS.build(
        dict(type=f'ropim_mm.{ENCODERS[method]}', **{**settings, **options})
    )
    module.init_weights()
    return module


def batch(
    model: BaseModel,
    images: int = 2,
    size: Size = 32,
    seed: int = 0,
    device: str | torch.device = 'cpu',
) -> tuple[torch.Tensor | list[torch.Tensor], list[DataSample]]:
    """Normalised inputs and samples as a loader gives them.

    Samples carry what the data gives (regions), not what a model draws.
    """
    generator = torch.Generator().manual_seed(seed)
    name = type(model).__name__
    height, width = to_pair(size)
    channels = model.backbone.patch_embed.in_channels

    def views(count: int) -> list[torch.Tensor]:
        shape = (images, channels, height, width)
        return [
            torch.randn(shape, generator=generator).to(device)
            for _ in range(count)
        ]

    inputs = views(2) if name == 'ConMIM' else views(1)[0]
    samples = []
    for _ in range(images):
        sample = DataSample()
        if name == 'RMAE':
            noise = torch.rand(REGIONS, height, width, generator=generator)
            sample.set_field((noise > 0.5).to(device), 'regions')
        samples.append(sample)
    return inputs, samples


def loss_of(model: BaseModel, *args) -> torch.Tensor:
    """The sum of a model's losses."""
    return sum(model.loss(*args).values())


# --- configs ----------------------------------------------------------------

CONFIG = """
custom_imports = dict(imports=['ropim_mm'], allow_failed_imports=False)
default_scope = 'mmpretrain'
model = {model}
data_preprocessor = {preprocessor}
train_dataloader = dict(
    batch_size=4, num_workers=0, drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset', data_root={images!r}, with_label=False,
        pipeline={pipeline}))
optim_wrapper = dict(
    type='ropim_mm.AutocastOptimWrapper', dtype='float32',
    optimizer=dict(type='AdamW', lr=1e-3),
    constructor='ropim_mm.LayerDecayOptimWrapperConstructor',
    clip_grad=dict(max_norm=5.0))
train_cfg = dict(by_epoch=True, max_epochs=1)
custom_hooks = {hooks}
default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
visualizer = dict(type='Visualizer', vis_backends=[
    dict(type='LocalVisBackend')])
randomness = dict(seed=0)
"""


def config_text(
    method: str, images: str | PathLike, size: Size = 32, **options
) -> str:
    """A config that pretrains a tiny model on a folder of images.

    Args:
        method: One of ``METHODS``.
        images: The folder.
        size: Side or (height, width) of the images.
        **options: Of :func:`model_config`.
    """
    model = model_config(method, img_size=size, **options)
    crop = dict(
        type='ropim_mm.RandomResizedCrop',
        scale=to_pair(size)[::-1],
        crop_ratio_range=(0.5, 1.0),
    )
    pipeline = [dict(type='ropim_mm.LoadImage'), crop]
    preprocessor = 'SelfSupDataPreprocessor'
    hooks = []
    if method == 'rmae':
        preprocessor = 'ropim_mm.RegionDataPreprocessor'
        pipeline.insert(
            1,
            dict(type='ropim_mm.MakeRegions', scales=(50,), min_sizes=(20,)),
        )
        pipeline += [
            dict(
                type='ropim_mm.SelectRegions',
                num_regions=REGIONS,
                patch_size=model['backbone']['patch_size'],
            ),
            dict(type='ropim_mm.PackRegions'),
        ]
    elif method == 'conmim':
        jitter = dict(type='ColorJitter', brightness=0.4, contrast=0.4)
        pipeline += [
            dict(type='ropim_mm.TwoViews', strong=[jitter]),
            dict(type='PackInputs'),
        ]
        hooks = [dict(type='ropim_mm.MomentumCopyHook')]
    else:
        pipeline.append(dict(type='PackInputs'))
    return CONFIG.format(
        model=model,
        preprocessor=dict(
            type=preprocessor, mean=[128] * 3, std=[64] * 3, to_rgb=True
        ),
        images=str(images),
        pipeline=pipeline,
        hooks=hooks,
    )
