"""Two views of one crop, aligned pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from mmcv.transforms import BaseTransform, Compose

from ropim_mm.errors import InputError
from ropim_mm.registry import TRANSFORMS


@TRANSFORMS.register_module()
class TwoViews(BaseTransform):
    """Keep the image as it is, and make a second view of it.

    For ConMIM: crop and flip come before, and both views have them; what is
    given here changes colours only, and the views stay aligned.

    **Required keys:**

    - img: (H, W, C)

    **Modified keys:**

    - img: [weak, strong], each (H, W, C)

    Args:
        strong: Steps that make the second view, such as ``ColorJitter``.
            What they leave in other keys is dropped.

    Raises:
        InputError: By :meth:`transform`, a step has changed the image's
            shape.
    """

    def __init__(self, strong: Sequence[dict | Callable]) -> None:
        self.strong = Compose(list(strong))

    def transform(self, results: dict) -> dict:
        """Make ``img`` a list of two images."""
        weak = results['img']
        strong = self.strong(dict(results, img=_for_colours(weak)))['img']
        if strong.shape != weak.shape:
            raise InputError(
                f'TwoViews: the strong view has the shape {strong.shape}, '
                f'the weak one {weak.shape}; expected equal ones. Crop, '
                'resize and flip before, for both views, and keep the '
                'channels (RandomGrayscale: keep_channels=True)'
            )
        results['img'] = [weak, _for_a_batch(strong)]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(strong={self.strong})'


def _for_colours(image: np.ndarray) -> np.ndarray:
    """A copy that steps which change colours work on without another one.

    They hand it to Pillow with the channels in reverse.
    """
    if image.ndim != 3 or image.shape[2] != 3:
        return image.copy()
    # OpenCV shuffles bytes many at a time, numpy one by one.
    return _reversed(image)[..., ::-1]


def _for_a_batch(image: np.ndarray) -> np.ndarray:
    """The same values, colours side by side in memory."""
    if image.ndim != 3 or image.shape[2] != 3 or image.strides[2] > 0:
        return image
    return _reversed(image[..., ::-1])


def _reversed(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_BGR2RGB)
