"""Released checkpoints in, encoders out: the files behind two tools."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..errors import InputError
from ..version import __version__
from .beit_names import ARCHS, grid_of_table, to_beit
from .coverage import find_state_dict
from .official import CONVERTERS, convert_state_dict, dropped_names
from .reading import CheckpointError, read_checkpoint
from .writing import check_destination, write_atomically

BACKBONE = 'backbone.'
FORMATS = ('mm', 'timm', 'safetensors')

LICENCE_NOTICE = (
    'The weights keep the licence under which they were released, which may '
    'forbid commercial use; converting them does not change it. Only the code '
    'of ropim_mm is under Apache-2.0.'
)

_TABLE = 'relative_position_bias_table'
_INDEX = 'relative_position_index'


@dataclass(frozen=True)
class EncoderShape:
    """What the tensors of a BEiT-style encoder say about it.

    Attributes:
        arch: Name of the architecture, or its numbers.
        patch_size: (height, width) of a patch.
        grid: (h, w) of the relative position tables, None without tables.
    """

    arch: str
    patch_size: tuple[int, int]
    grid: tuple[int, int] | None

    def __str__(self) -> str:
        def size(pair: tuple[int, int]) -> str:
            return f'{pair[0]}x{pair[1]}'

        grid = 'unknown' if self.grid is None else size(self.grid)
        return f'arch {self.arch}, patch {size(self.patch_size)}, grid {grid}'


@dataclass(frozen=True)
class Summary:
    """What a conversion wrote.

    Attributes:
        destination: The file.
        tensors: Number of tensors in it.
        parameters: Number of values in them, index buffers not counted.
        kind: 'pretraining' or 'fine-tuned'.
        shape: What the encoder is.
        dropped: Released names that have no place in this project's models.
    """

    destination: str
    tensors: int
    parameters: int
    kind: str
    shape: EncoderShape
    dropped: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = (
            f'{self.destination}: {self.tensors} tensors, '
            f'{self.parameters:,} parameters, {self.kind}, {self.shape}'
        )
        if self.dropped:
            text += f'. Dropped, of no use here: {", ".join(self.dropped)}'
        return text


def encoder_shape(weights: Mapping[str, Tensor]) -> EncoderShape:
    """Reads architecture, patch and grid from an encoder's tensors.

    Args:
        weights: Our names, without ``backbone.``.

    Returns:
        EncoderShape: The grid of a table without its index is taken to be
        square.
    """
    projection = weights['patch_embed.projection.weight']
    layers = {n.split('.')[1] for n in weights if n.startswith('layers.')}
    tables = [name for name in weights if name.endswith(_TABLE)]
    width, depth = projection.shape[0], len(layers)
    heads = weights[tables[0]].shape[1] if tables else None
    names = [n for n, a in ARCHS.items() if a[:3] == (width, depth, heads)]
    if names:
        name = names[0]
    else:
        name = f'{width} wide, {depth} blocks'
        name += f', {heads} heads' if heads else ''
    grid = None
    if tables:
        rows = weights[tables[0]].shape[0]
        index = weights.get(tables[0].replace(_TABLE, _INDEX))
        grid = _grid(rows, index)
    return EncoderShape(name, tuple(projection.shape[2:]), grid)


def _grid(rows: int, index: Tensor | None) -> tuple[int, int] | None:
    try:
        return grid_of_table(rows, index)
    except InputError:  # not square, and the file does not say what else
        return None


def _count(weights: Mapping[str, Tensor]) -> int:
    return sum(t.numel() for n, t in weights.items() if not n.endswith(_INDEX))


def _kind(weights: Mapping[str, Tensor]) -> str:
    """A pretraining model has one table for all blocks or a decoder."""
    shared = f'{BACKBONE}rel_pos_bias.{_TABLE}' in weights
    decoder = any(name.startswith('neck.') for name in weights)
    return 'pretraining' if shared or decoder else 'fine-tuned'


def convert_official(
    method: str,
    src: str | os.PathLike,
    dst: str | os.PathLike,
    *,
    force: bool = False,
    trust: bool = False,
) -> Summary:
    """Writes a released checkpoint in this project's format.

    Args:
        method: 'ropim', ...; a key of ``official.CONVERTERS``.
        src: The released file, of pretraining or fine-tuning.
        dst: The file to write: ``dict(meta=..., state_dict=...)``.
        force: Replace ``dst`` if it exists.
        trust: Unpickle ``src`` even if that runs code from it.

    Returns:
        Summary: What was written.

    Raises:
        CheckpointError: The method is unknown, ``src`` is not one of its
            released files, or ``dst`` exists.
        MissingCheckpointError: There is no ``src``.
    """
    if method not in CONVERTERS:
        convert_state_dict(method, {})  # raises, naming those there are
    src, dst = os.fspath(src), os.fspath(dst)
    check_destination(dst, force)
    released = find_state_dict(read_checkpoint(src, trust=trust), src)
    try:
        weights = convert_state_dict(method, released)
    except CheckpointError as error:
        raise CheckpointError(f'{src}: {error}') from error
    encoder = _encoder(weights, src)
    kind = _kind(weights)
    meta = dict(
        ropim_mm_version=__version__,
        converted_from=os.path.basename(src),
        method=method,
        kind=kind,
        licence=LICENCE_NOTICE,
    )
    content = dict(meta=meta, state_dict=_plain(weights))
    write_atomically(dst, partial(torch.save, content), force)
    return Summary(
        dst,
        len(weights),
        _count(weights),
        kind,
        encoder_shape(encoder),
        tuple(dropped_names(method, released)),
    )


def extract_backbone(
    src: str | os.PathLike,
    dst: str | os.PathLike,
    format: str = 'mm',
    *,
    force: bool = False,
    trust: bool = False,
) -> Summary:
    """Writes the encoder of a checkpoint alone.

    Args:
        src: A checkpoint of this project (or of MMPretrain, with the same
            names), pretrained or fine-tuned.
        dst: The file to write.
        format: 'mm': ``dict(meta=..., state_dict=...)`` with MMPretrain's
            names of ``BEiTViT`` under ``backbone.``, since MMEngine's
            ``Pretrained(prefix='backbone.')`` insists on it; 'safetensors':
            the same names in a safetensors file; 'timm': the names of timm's
            ``Beit``, a plain state dict, with a shared table copied to every
            block as timm's models have it.
        force: Replace ``dst`` if it exists.
        trust: Unpickle ``src`` even if that runs code from it.

    Returns:
        Summary: What was written.

    Raises:
        CheckpointError: ``src`` has no encoder under ``backbone.``, one that
            the format has no names for, or ``dst`` exists.
        MissingCheckpointError: There is no ``src``.
    """
    if format not in FORMATS:
        raise CheckpointError(
            f'There is no format {format!r}. Available: {", ".join(FORMATS)}.'
        )
    src, dst = os.fspath(src), os.fspath(dst)
    check_destination(dst, force)
    weights = find_state_dict(read_checkpoint(src, trust=trust), src)
    encoder = _encoder(weights, src)
    shape = encoder_shape(encoder)
    meta = dict(
        ropim_mm_version=__version__, extracted_from=os.path.basename(src)
    )
    written = {BACKBONE + name: tensor for name, tensor in encoder.items()}
    if format == 'timm':
        written = _to_timm(encoder, src)
        write_atomically(dst, partial(torch.save, _plain(written)), force)
    elif format == 'safetensors':
        content = _safetensors(written, {'format': 'pt', **meta})
        write_atomically(dst, lambda file: file.write(content), force)
    else:
        content = dict(meta=meta, state_dict=_plain(written))
        write_atomically(dst, partial(torch.save, content), force)
    return Summary(dst, len(written), _count(written), _kind(weights), shape)


def _plain(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached tensors that own no more memory than they show.

    A view would be saved with all of the storage behind it.
    """
    return {n: t.detach().cpu().clone() for n, t in weights.items()}


def _encoder(weights: Mapping[str, Tensor], src: str) -> dict[str, Tensor]:
    encoder = {
        name[len(BACKBONE) :]: tensor
        for name, tensor in weights.items()
        if name.startswith(BACKBONE)
    }
    if 'patch_embed.projection.weight' in encoder:
        return encoder
    found = sorted({name.split('.', 1)[0] + '.' for name in weights})
    raise CheckpointError(
        f'{src} has no encoder: there is no {BACKBONE}patch_embed.projection.'
        f'weight. Found names that begin with {", ".join(found[:8])}. Give a '
        'checkpoint of this project; convert a released file first with '
        'tools/model_converters/official_to_mm.py.'
    )


def _to_timm(encoder: Mapping[str, Tensor], src: str) -> dict[str, Tensor]:
    named, unknown = {}, []
    for name, tensor in encoder.items():
        other = to_beit(name)
        if other is None:
            unknown.append(name)
        # timm computes the indices, and its Beit has no mask token.
        elif not name.endswith(_INDEX) and name != 'mask_token':
            named[other] = tensor
    if unknown:
        raise CheckpointError(
            f"{src}: timm's Beit has no tensors for {', '.join(unknown)}. "
            "Expected a BEiT-style encoder, as ROPIM's; use --format mm or "
            'safetensors.'
        )
    shared = named.pop(f'rel_pos_bias.{_TABLE}', None)
    if shared is not None:
        depth = len({n.split('.')[1] for n in named if 'blocks.' in n})
        for i in range(depth):
            named[f'blocks.{i}.attn.{_TABLE}'] = shared
    return named


def _safetensors(weights: Mapping[str, Tensor], meta: dict) -> bytes:
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise CheckpointError(
            '--format safetensors needs the package safetensors. Install '
            'it: pip install safetensors'
        ) from error
    plain = {n: t.contiguous() for n, t in _plain(weights).items()}
    return save(plain, metadata=meta)
