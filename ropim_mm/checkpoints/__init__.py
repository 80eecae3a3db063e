"""Checkpoints: read safely, loaded with a report, converted, exported."""

from .coverage import CoverageError, CoverageReport, load_weights
from .pretrained import PretrainedMixin, unchecked_pretrained
from .reading import (
    CheckpointError,
    MissingCheckpointError,
    UntrustedCheckpointError,
    read_checkpoint,
    register_safe_loader,
    trust_checkpoint,
)

__all__ = [
    'CheckpointError',
    'CoverageError',
    'CoverageReport',
    'MissingCheckpointError',
    'PretrainedMixin',
    'UntrustedCheckpointError',
    'load_weights',
    'read_checkpoint',
    'register_safe_loader',
    'trust_checkpoint',
    'unchecked_pretrained',
]
