"""Released checkpoints in, encoders out: the files behind two tools."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..version import __version__
from .beit_names import to_beit
from .coverage import find_state_dict
from .encoders import (
    BEIT,
    GRID,
    INDEX,
    IRPE,
    PATCH_WEIGHT,
    PLAIN,
    TABLE,
    EncoderShape,
    encoder_shape,
    family_of,
)
from .official import (
    CONVERTERS,
    PAIRED,
    convert_state_dict,
    dropped_names,
)
from .reading import CheckpointError, read_checkpoint
from .writing import check_destination, write_atomically

BACKBONE = 'backbone.'
# Before the names of a model's momentum copy.
MOMENTUM = 'momentum.'
FORMATS = ('mm', 'timm', 'safetensors')
# The encoder of each method of official.CONVERTERS.
FAMILIES = {'conmim': BEIT, 'lomar': IRPE, 'rmae': PLAIN, 'ropim': BEIT}

LICENCE_NOTICE = (
    'The weights keep the licence under which they were released, which may '
    'forbid commercial use; converting them does not change it. Only the code '
    'of ropim_mm is under Apache-2.0.'
)


MIXED_GRIDS = (
    'Its blocks have tables of different grids, for windows and for the whole '
    "image: this project's encoders resize each to what they need, "
    "MMPretrain's BEiTViT cannot"
)


@dataclass(frozen=True)
class Summary:
    """What a conversion wrote.

    Attributes:
        destination: The file.
        tensors: Number of tensors in it.
        parameters: Number of values in them, index and grid buffers not
            counted.
        kind: 'pretraining' or 'fine-tuned'.
        shape: What the encoder is.
        dropped: Released names that have no place in this project's models.
        notes: Remarks on what was chosen.
    """

    destination: str
    tensors: int
    parameters: int
    kind: str
    shape: EncoderShape
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f'{self.destination}: {self.tensors} tensors, '
            f'{self.parameters:,} parameters, {self.kind}, {self.shape}',
            *self.notes,
        ]
        if self.dropped:
            lines.append(f'Dropped, of no use here: {", ".join(self.dropped)}')
        return '\n  '.join(lines)


def _count(weights: Mapping[str, Tensor]) -> int:
    return sum(
        tensor.numel()
        for name, tensor in weights.items()
        if not name.endswith((INDEX, GRID))
    )


def _kind(weights: Mapping[str, Tensor]) -> str:
    """A fine-tuned model has a classifier, a norm after pooling or tables in
    each block; a pretraining model none of them."""
    tuned = any(
        name.startswith(('head.', f'{BACKBONE}ln2.'))
        or name.endswith(f'.attn.{TABLE}')
        for name in weights
    )
    return 'fine-tuned' if tuned else 'pretraining'


def convert_official(
    method: str,
    src: str | os.PathLike,
    dst: str | os.PathLike,
    *,
    momentum: str | os.PathLike | None = None,
    force: bool = False,
    trust: bool = False,
) -> Summary:
    """Writes a released checkpoint in this project's format.

    Args:
        method: 'ropim', ...; a key of ``official.CONVERTERS``.
        src: The released file, of pretraining or fine-tuning. Where a method
            releases student and momentum copy in two files, either; the
            other one is looked for beside it.
        dst: The file to write: ``dict(meta=..., state_dict=...)``.
        momentum: The file of the momentum copy, where it cannot be found by
            its name; ``src`` is the student's then.
        force: Replace ``dst`` if it exists.
        trust: Unpickle ``src`` even if that runs code from it.

    Returns:
        Summary: What was written.

    Raises:
        CheckpointError: The method is unknown or has no momentum copy,
            ``src`` is not one of its released files or has the encoder of
            another method, or ``dst`` exists.
        MissingCheckpointError: There is no ``src``.
    """
    if method not in CONVERTERS:
        convert_state_dict(method, {})  # raises, naming those there are
    if momentum is not None and method not in PAIRED:
        raise CheckpointError(
            f'--momentum {os.fspath(momentum)}: {method} has no momentum '
            f'copy. Expected it with one of {", ".join(PAIRED)} only.'
        )
    src, dst = os.fspath(src), os.fspath(dst)
    check_destination(dst, force)
    files, notes = [src], ()
    if momentum is not None:
        files.append(os.fspath(momentum))
    elif method in PAIRED:
        files = [f for f in PAIRED[method].find_pair(src) if f is not None]
    weights, dropped = _converted(method, files[0], trust)
    if method in PAIRED:
        copy = None
        if len(files) == 2:
            copy = _converted(method, files[1], trust)[0]
        alone, student = set(weights), weights
        try:
            weights = PAIRED[method].join(student, copy)
        except CheckpointError as error:
            raise CheckpointError(f'{" and ".join(files)}: {error}') from error
        if set(weights) != alone:
            notes = (_origin_of_copy(files),)
    encoder = _encoder(weights, src)
    _check_family(method, family_of(encoder), src)
    kind = _kind(weights)
    meta = dict(
        ropim_mm_version=__version__,
        converted_from=', '.join(map(os.path.basename, files)),
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
        tuple(dropped),
        notes,
    )


def _converted(
    method: str, src: str, trust: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights of a released file, and the names of those left out."""
    released = find_state_dict(read_checkpoint(src, trust=trust), src)
    try:
        weights = convert_state_dict(method, released)
    except CheckpointError as error:
        raise CheckpointError(f'{src}: {error}') from error
    return weights, dropped_names(method, released)


def _check_family(method: str, found: str, src: str) -> None:
    """Many names are those of all methods: a file of another may convert."""
    if found == FAMILIES[method]:
        return
    fitting = ' or '.join(m for m in FAMILIES if FAMILIES[m] == found)
    raise CheckpointError(
        f'{src} is not a file of {method}: its encoder looks like '
        f'"{found}", expected "{FAMILIES[method]}". Give the method that the '
        f'file is of; with such an encoder: {fitting}.'
    )


def _origin_of_copy(files: list[str]) -> str:
    if len(files) == 2:
        return f'Student from {files[0]}, momentum copy from {files[1]}'
    return (
        f'Student and momentum copy are both from {files[0]}: the other file '
        'is not beside it (--momentum FILE names it)'
    )


def extract_backbone(
    src: str | os.PathLike,
    dst: str | os.PathLike,
    format: str = 'mm',
    *,
    student: bool = False,
    force: bool = False,
    trust: bool = False,
) -> Summary:
    """Writes the encoder of a checkpoint alone.

    Args:
        src: A checkpoint of this project (or of MMPretrain, with the same
            names), pretrained or fine-tuned.
        dst: The file to write.
        format: 'mm': ``dict(meta=..., state_dict=...)`` with MMPretrain's
            names of ``BEiTViT`` or ``VisionTransformer`` under ``backbone.``,
            since MMEngine's ``Pretrained(prefix='backbone.')`` insists on it;
            'safetensors': the same names in a safetensors file; 'timm': the
            names of timm's ``Beit`` or ``VisionTransformer``, a plain state
            dict, with a shared table copied to every block as timm's models
            have it.
        student: Of a checkpoint with a momentum copy (ConMIM's) write the
            student. By default the copy, which the release fine-tunes.
        force: Replace ``dst`` if it exists.
        trust: Unpickle ``src`` even if that runs code from it.

    Returns:
        Summary: What was written.

    Raises:
        CheckpointError: ``src`` has no encoder under ``backbone.``, one that
            the format has no names for, no momentum copy to choose against,
            or ``dst`` exists.
        MissingCheckpointError: There is no ``src``.
    """
    if format not in FORMATS:
        raise CheckpointError(
            f'There is no format {format!r}. Available: {", ".join(FORMATS)}.'
        )
    src, dst = os.fspath(src), os.fspath(dst)
    check_destination(dst, force)
    weights = find_state_dict(read_checkpoint(src, trust=trust), src)
    prefix, notes = _which_encoder(weights, src, student)
    encoder = _encoder(weights, src, prefix)
    shape = encoder_shape(encoder)
    if shape.grids:
        notes += (MIXED_GRIDS,)
    meta = dict(
        ropim_mm_version=__version__,
        extracted_from=os.path.basename(src),
        extracted_prefix=prefix,
    )
    written = {BACKBONE + name: tensor for name, tensor in encoder.items()}
    if format == 'timm':
        written = _to_timm(encoder, shape, src)
        write_atomically(dst, partial(torch.save, _plain(written)), force)
    elif format == 'safetensors':
        content = _safetensors(written, {'format': 'pt', **meta})
        write_atomically(dst, lambda file: file.write(content), force)
    else:
        content = dict(meta=meta, state_dict=_plain(written))
        write_atomically(dst, partial(torch.save, content), force)
    return Summary(
        dst, len(written), _count(written), _kind(weights), shape, notes=notes
    )


def _which_encoder(
    weights: Mapping[str, Tensor], src: str, student: bool
) -> tuple[str, tuple[str, ...]]:
    """The prefix of the encoder to write, and a remark where there are two."""
    copy = MOMENTUM + BACKBONE
    if not any(name.startswith(copy) for name in weights):
        if student:
            raise CheckpointError(
                f'--student: {src} has no momentum copy ({copy}*) to choose '
                'the student against. Leave the option out.'
            )
        return BACKBONE, ()
    if student:
        return BACKBONE, (f'This is the student ({BACKBONE}*)',)
    return copy, (
        f'This is the momentum copy ({copy}*), which fine-tuning starts '
        f'from; --student takes the student ({BACKBONE}*)',
    )


def _plain(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached tensors that own no more memory than they show.

    A view would be saved with all of the storage behind it.
    """
    return {n: t.detach().cpu().clone() for n, t in weights.items()}


def _encoder(
    weights: Mapping[str, Tensor], src: str, prefix: str = BACKBONE
) -> dict[str, Tensor]:
    encoder = {
        name[len(prefix) :]: tensor
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }
    if PATCH_WEIGHT in encoder:
        return encoder
    if 'encoder.cls_token' in encoder:
        raise CheckpointError(
            f'{src} has a MIMDet backbone ({prefix}encoder.*): a '
            'convolutional stem took the place of the patch embedding, '
            'without which its encoder is no vision transformer. Give the '
            'pretraining checkpoint that it started from.'
        )
    found = sorted({name.split('.', 1)[0] + '.' for name in weights})
    raise CheckpointError(
        f'{src} has no encoder: there is no {prefix}patch_embed.projection.'
        f'weight. Found names that begin with {", ".join(found[:8])}. Give a '
        'checkpoint of this project; convert a released file first with '
        'tools/model_converters/official_to_mm.py.'
    )


def _to_timm(
    encoder: Mapping[str, Tensor], shape: EncoderShape, src: str
) -> dict[str, Tensor]:
    """timm's names; those of its Beit and its VisionTransformer agree."""
    if shape.family == IRPE:
        raise CheckpointError(
            f'{src} has an encoder with contextual relative positions '
            "(layers.N.attn.rpe_k), as LoMaR's. timm has no such attention, "
            'and without it the features would be others. Use --format mm or '
            'safetensors, and ropim_mm.LoMaRViT.'
        )
    if shape.grids:
        grids = ' and '.join(f'{h}x{w}' for h, w in shape.grids)
        raise CheckpointError(
            f'{src} has relative position tables of different grids in its '
            f"blocks ({grids}, windows and the whole image). timm's Beit has "
            'one grid for all. Use --format mm or safetensors, or give the '
            'pretraining checkpoint that this encoder started from.'
        )
    model, alien = {
        BEIT: ("timm's Beit", 'attn.qkv.bias'),
        PLAIN: ("timm's VisionTransformer", None),
    }[shape.family]
    named, unknown = {}, []
    for name, tensor in encoder.items():
        # timm computes the indices, and its models have no mask token.
        if name.endswith((INDEX, GRID)) or name == 'mask_token':
            continue
        other = to_beit(name)
        if other is None or (alien and name.endswith(alien)):
            unknown.append(name)
        else:
            named[other] = tensor
    if unknown:
        raise CheckpointError(
            f'{src}: {model} has no tensors for {", ".join(unknown)}. '
            'Expected an encoder of one of the methods of this project; use '
            '--format mm or safetensors.'
        )
    shared = named.pop(f'rel_pos_bias.{TABLE}', None)
    if shared is not None:
        depth = len({n.split('.')[1] for n in named if 'blocks.' in n})
        for i in range(depth):
            named[f'blocks.{i}.attn.{TABLE}'] = shared
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
