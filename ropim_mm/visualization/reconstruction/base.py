"""What a pretraining method was shown of an image, and what it predicted.

An :class:`Explainer` knows the pictures of one method; :func:`explain` finds
the one for a model. A new method adds a file here:

.. code-block:: python

    @EXPLAINERS.register(MyMethod)
    class MyMethodExplainer(Explainer):
        def draw(self, model, pixels, generator): ...
        def explain(self, model, inputs, samples, to_pixels): ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from mmpretrain.models.selfsup.base import BaseSelfSupervisor
from mmpretrain.structures import DataSample
from PIL import Image, ImageOps
from torch import nn

from ...models.layers.patches import to_pair

ToPixels = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Panel:
    """The same picture of every image of a batch.

    Attributes:
        title: What it is, in a word or two.
        formula: The same in symbols; may be ''.
        pixels: (B, C, H, W) float32 on the CPU, C = 1 or 3 (red, green,
            blue), 0 for black to 255 for white. Values may lie outside:
            projections and predictions are not bound to what a picture can
            show.
        compare: Whether its distance to the input says something.
        captions: B texts for below it; none if empty.
    """

    title: str
    formula: str
    pixels: torch.Tensor
    compare: bool = False
    captions: Sequence[str] = ()

    def images(self) -> np.ndarray:
        """(B, H, W, 3) uint8, clipped to what can be shown."""
        pixels = self.pixels.round().clamp(0, 255).to(torch.uint8)
        pixels = pixels.permute(0, 2, 3, 1).numpy()
        if pixels.shape[-1] == 1:
            pixels = np.repeat(pixels, 3, axis=-1)
        return np.ascontiguousarray(pixels)

    def distance(self, other: Panel) -> list[float]:
        """Mean absolute difference of each image, in grey levels of 255."""
        difference = (self.pixels - other.pixels).abs()
        return difference.flatten(1).mean(1).tolist()


@dataclass(frozen=True)
class Details:
    """More pictures of every image, a table of them an image.

    Attributes:
        title: What the table shows.
        rows: A label and panels each; the same titles in all rows.
    """

    title: str
    rows: Sequence[tuple[str, Sequence[Panel]]]


@dataclass(frozen=True)
class Explanation:
    """What there is to see of a batch.

    Attributes:
        panels: One row an image, the input first.
        details: Tables for those who look at a single image.
        note: How to read the pictures, a sentence or two.
    """

    panels: Sequence[Panel]
    details: Sequence[Details] = field(default=())
    note: str = ''


class Explainer(ABC):
    """The pictures of one method."""

    @abstractmethod
    def draw(
        self,
        model: BaseSelfSupervisor,
        pixels: np.ndarray,
        generator: torch.Generator,
    ) -> DataSample:
        """The random decisions of one image, as fields of a data sample.

        Args:
            model: The method's algorithm.
            pixels: The image, (C, H, W) uint8, from which fields may be made.
            generator: The only source of randomness; on the CPU, so that
                pictures are the same on every device.
        """

    @abstractmethod
    def explain(
        self,
        model: BaseSelfSupervisor,
        inputs: torch.Tensor,
        samples: list[DataSample],
        to_pixels: ToPixels,
    ) -> Explanation:
        """The pictures of a batch.

        Args:
            model: The method's algorithm, in evaluation mode.
            inputs: (B, C, H, W), normalised, on the model's device.
            samples: B samples from :meth:`draw`.
            to_pixels: Normalised (B, C, H, W) to :attr:`Panel.pixels`.
        """


class _Explainers:
    """One explainer an algorithm class; subclasses of it inherit."""

    def __init__(self) -> None:
        self._explainers: dict[type[nn.Module], Explainer] = {}

    def register(
        self, algorithm: type[nn.Module]
    ) -> Callable[[type[Explainer]], type[Explainer]]:
        """Class decorator: this explainer is for ``algorithm``."""

        def add(explainer: type[Explainer]) -> type[Explainer]:
            self._explainers[algorithm] = explainer()
            return explainer

        return add

    def of(self, model: nn.Module) -> Explainer:
        """The explainer of a model.

        Raises:
            ValueError: There is none for its class.
        """
        for cls in type(model).__mro__:
            if cls in self._explainers:
                return self._explainers[cls]
        known = ', '.join(cls.__name__ for cls in self._explainers)
        raise ValueError(
            f'there are no pictures of a {type(model).__name__}; expected '
            f'one of {known}. A config of pretraining is needed, not one of '
            'fine-tuning'
        )


EXPLAINERS = _Explainers()


def explain(
    model: BaseSelfSupervisor,
    images: Sequence[np.ndarray],
    seeds: Sequence[int],
) -> Explanation:
    """Show images to a pretrained model.

    The model is put into evaluation mode for it (no drop path) and back. Its
    channels are taken to be red, green, blue, or grey, as in all configs of
    this package.

    Args:
        model: A pretraining algorithm with an :class:`Explainer`.
        images: B images, (H, W, 3) uint8 red, green, blue, of any sizes;
            resized and centre-cropped to ``model.backbone.img_size``.
        seeds: B numbers that fix the random decisions. One number and one
            image always give the same picture, whatever the batch.

    Returns:
        Explanation: What the model's explainer has to show.

    Raises:
        ValueError: The model has no explainer, works on other than 1 or 3
            channels, or the arguments do not fit each other.
    """
    explainer = EXPLAINERS.of(model)
    if not images or len(images) != len(seeds):
        raise ValueError(
            f'{len(images)} images came with {len(seeds)} seeds; expected '
            'one seed an image, and at least one image'
        )
    size = to_pair(model.backbone.img_size)
    channels = input_channels(model)
    pixels = [fit_image(image, size, channels) for image in images]
    samples = [
        explainer.draw(model, each, torch.Generator().manual_seed(seed))
        for each, seed in zip(pixels, seeds, strict=True)
    ]
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            inputs = normalize(
                model.data_preprocessor, torch.from_numpy(np.stack(pixels))
            )
            return explainer.explain(
                model,
                inputs,
                samples,
                lambda x: unnormalize(model.data_preprocessor, x).cpu(),
            )
    finally:
        model.train(training)


def input_channels(model: BaseSelfSupervisor) -> int:
    """Channels that a model's encoder expects, 1 or 3.

    Raises:
        ValueError: It is another number.
    """
    channels = model.backbone.patch_embed.projection.in_channels
    if channels not in (1, 3):
        raise ValueError(
            f'the encoder has in_channels={channels}; pictures can be shown '
            'to one with 1 (grey) or 3 (red, green, blue)'
        )
    return channels


def fit_image(
    image: np.ndarray, size: tuple[int, int], channels: int = 3
) -> np.ndarray:
    """Resize so that the image covers ``size``, and cut out the centre.

    Args:
        image: (H, W, 3) uint8, red, green, blue.
        size: (height, width) wanted.
        channels: 3, or 1 for grey (ITU-R 601 luma).

    Returns:
        (channels, height, width) uint8.
    """
    picture = Image.fromarray(image)
    if picture.size != size[::-1]:
        picture = ImageOps.fit(picture, size[::-1], Image.Resampling.BICUBIC)
    if channels == 1:
        return np.array(picture.convert('L'))[None]
    return np.ascontiguousarray(np.array(picture).transpose(2, 0, 1))


def normalize(preprocessor: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Pixels as the network gets them: (pixels - mean) / std.

    Args:
        preprocessor: A data preprocessor. Without ``mean`` and ``std`` it
            does not normalise.
        pixels: (B, C, H, W) of 0 to 255, channels as the network has them.

    Returns:
        (B, C, H, W) float32 on the preprocessor's device.
    """
    pixels = pixels.to(preprocessor.device).float()
    if getattr(preprocessor, 'mean', None) is None:
        return pixels
    return (pixels - preprocessor.mean) / preprocessor.std


def unnormalize(
    preprocessor: nn.Module, normalized: torch.Tensor
) -> torch.Tensor:
    """Inverse of :func:`normalize`, float32, neither rounded nor clipped."""
    normalized = normalized.float()
    if getattr(preprocessor, 'mean', None) is None:
        return normalized
    return normalized * preprocessor.std + preprocessor.mean
