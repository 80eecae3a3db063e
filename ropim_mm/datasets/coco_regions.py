"""Regions out of COCO's annotations: panoptic PNGs, instances' outlines."""

from __future__ import annotations

import io
from collections.abc import Sequence
from types import ModuleType

import numpy as np
from PIL import Image

from ropim_mm.datasets.label_maps import NO_REGION, LabelMaps
from ropim_mm.errors import InputError


def panoptic_maps(data: bytes, segment_ids: Sequence[int]) -> LabelMaps:
    """The segments of a COCO panoptic PNG as one label map.

    Args:
        data: Content of the PNG; a pixel's segment is
            ``red + 256 * green + 256**2 * blue``, 0 for none.
        segment_ids: ``id`` of the ``segments_info`` of the JSON file.

    Returns:
        One map, whose labels are places in ``segment_ids``; pixels of no
        segment are in no region.

    Raises:
        InputError: It is no PNG in colour, or has a segment that is not
            listed. The message does not name the file.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            mode, pixels = image.mode, np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f'not a PNG that Pillow can read: {error}') from error
    if mode != 'RGB':
        raise InputError(
            f'the PNG is of mode {mode}; expected RGB, as COCO panoptic '
            'annotations are'
        )
    ids = pixels.astype(np.uint32) @ np.array([1, 1 << 8, 1 << 16], np.uint32)
    found, index = np.unique(ids, return_inverse=True)
    place = {int(each): number for number, each in enumerate(segment_ids)}
    unknown = [int(i) for i in found if i and int(i) not in place]
    if unknown:
        raise InputError(
            f'it has the segments {unknown[:10]}, which are none of the '
            f'{len(place)} that the JSON file lists for it'
        )
    table = [place.get(int(i), NO_REGION) for i in found]
    return LabelMaps(
        index.reshape(ids.shape).astype(np.min_scalar_type(len(found) - 1)),
        (np.array([table], dtype=np.int32),),
    )


def instance_maps(
    instances: Sequence[dict], shape: tuple[int, int]
) -> LabelMaps:
    """COCO instances as regions, which may overlap; one map an instance.

    Args:
        instances: Annotations with ``segmentation``: polygons (a list of
            lists of x, y in pixels), or a run-length code, compressed or not
            (a dict with ``size`` and ``counts``).
        shape: (H, W) of the image.

    Returns:
        Maps in the order of the instances; pixels outside an instance are in
        no region of its map, and empty instances are left out.

    Raises:
        InputError: pycocotools is missing, or a segmentation is malformed or
            of another size.
    """
    index = np.zeros(shape, dtype=np.int64)
    members: list[list[int]] = [[]]  # of each value, the instances it is in
    count = 0
    for number, instance in enumerate(instances):
        mask = _instance_mask(instance.get('segmentation'), shape, number)
        inside = mask.nonzero()
        values, place = np.unique(index[inside], return_inverse=True)
        if not len(values):
            continue
        # What the instance covers of each value becomes a value of its own.
        index[inside] = len(members) + place
        members += [[*members[value], count] for value in values]
        count += 1
    table = np.full((count, len(members)), NO_REGION, dtype=np.int32)
    for value, those in enumerate(members):
        table[those, value] = 0
    return LabelMaps(
        index.astype(np.min_scalar_type(len(members) - 1)), (table,)
    )


def _instance_mask(
    segmentation: list | dict | None, shape: tuple[int, int], number: int
) -> np.ndarray:
    coder = load_coder()
    height, width = shape
    try:
        if isinstance(segmentation, dict):
            if list(segmentation['size']) != [height, width]:
                raise InputError(
                    f'instance {number} is coded for an image of '
                    f'{segmentation["size"]} (height, width), and the image '
                    f'has {[height, width]}'
                )
            code = segmentation
            if isinstance(code['counts'], list):
                code = coder.frPyObjects(code, height, width)
        else:
            code = coder.merge(coder.frPyObjects(segmentation, height, width))
        return coder.decode(code)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f'the segmentation of instance {number} is neither polygons nor '
            f'a run-length code: {str(segmentation)[:80]} ({error})'
        ) from error


def load_coder() -> ModuleType:
    """pycocotools' module for run-length codes.

    Raises:
        InputError: It is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise InputError(
            'regions from COCO instances need pycocotools: '
            'pip install pycocotools'
        ) from error
    return mask
