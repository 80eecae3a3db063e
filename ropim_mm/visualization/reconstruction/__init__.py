"""What a pretraining method was shown of images, and what it predicted."""

from .base import (
    EXPLAINERS,
    Details,
    Explainer,
    Explanation,
    Panel,
    explain,
    fit_image,
    input_channels,
    normalize,
    unnormalize,
)
from .conmim import ConMIMExplainer
from .lomar import LoMaRExplainer
from .rmae import RMAEExplainer
from .ropim import ROPIMExplainer

__all__ = [
    'EXPLAINERS',
    'ConMIMExplainer',
    'Details',
    'Explainer',
    'Explanation',
    'LoMaRExplainer',
    'Panel',
    'RMAEExplainer',
    'ROPIMExplainer',
    'explain',
    'fit_image',
    'input_channels',
    'normalize',
    'unnormalize',
]
