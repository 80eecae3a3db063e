"""Datasets whose images have regions.

Files of label maps lie in a folder tree that mirrors that of the images, with
another suffix: ``train/n01440764/a.JPEG`` and ``fh_train/n01440764/a.png``
(or ``a.npy``, as released).

.. code-block:: python

    dataset = dict(
        type='ropim_mm.RegionDataset',
        data_root='data/imagenet/',
        data_prefix=dict(img_path='train', region_path='fh_train'),
        with_label=False,
        pipeline=train_pipeline,  # with ropim_mm.LoadRegions
    )

Several of them are joined by MMEngine's ``ConcatDataset``.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence

import numpy as np
from mmengine import fileio
from mmengine.logging import print_log
from mmpretrain.datasets import BaseDataset, CustomDataset

from ropim_mm.datasets.coco_regions import load_coder
from ropim_mm.datasets.zip_images import ImageZip
from ropim_mm.errors import InputError
from ropim_mm.registry import DATASETS

MAP_SUFFIX = '.png'


def map_name(image_name: str, suffix: str = MAP_SUFFIX) -> str:
    """Path of the label maps below their folder, of the image's below its.

    Args:
        image_name: Such as ``'cat/1.jpg'``.
        suffix: Of the files of label maps, with its dot.
    """
    return os.path.splitext(image_name)[0] + suffix


class _RegionFiles:
    """What a dataset of images needs besides, to have a file of maps each.

    A mixin before a subclass of MMEngine's ``BaseDataset``, which says under
    ``_image_root`` what its ``img_path`` begin with.
    """

    def __init__(
        self,
        *args,
        data_prefix: dict,
        region_suffix: str = MAP_SUFFIX,
        on_missing: str = 'raise',
        **kwargs,
    ) -> None:
        name = type(self).__name__
        if not isinstance(data_prefix, dict) or not data_prefix.get(
            'region_path'
        ):
            raise InputError(
                f'{name}: data_prefix is {data_prefix!r}; expected a dict '
                'with region_path, the folder of label maps, such as '
                "dict(img_path='train', region_path='fh_train')"
            )
        _check_policy(name, on_missing)
        self.region_suffix = region_suffix
        self.on_missing = on_missing
        super().__init__(*args, data_prefix=data_prefix, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Entries of the images that have label maps."""
        entries = super().load_data_list()
        paths = [self._region_path(entry['img_path']) for entry in entries]
        return _keep_present(
            entries, paths, self.on_missing, self.region_suffix
        )

    def get_data_info(self, idx: int) -> dict:
        """The entry, with ``region_path``."""
        info = super().get_data_info(idx)
        # Made here, rather than kept a second time for every image.
        info['region_path'] = self._region_path(info['img_path'])
        return info

    def _region_path(self, image: str) -> str:
        root = self._image_root
        if not image.startswith(root):
            raise InputError(
                f'the image {image} does not lie in {root}, so the place of '
                'its label maps is unknown; give names in the annotation '
                'file relative to data_prefix.img_path'
            )
        name = image[len(root) :].lstrip('/')
        return fileio.join_path(
            self.data_prefix['region_path'],
            map_name(name, self.region_suffix),
        )


def _check_policy(name: str, on_missing: str) -> None:
    if on_missing not in ('raise', 'skip'):
        raise InputError(
            f"{name}: on_missing is {on_missing!r}; expected 'raise' or 'skip'"
        )


def _keep_present(
    entries: list[dict], paths: Sequence[str], on_missing: str, suffix: str
) -> list[dict]:
    """Entries whose file of maps is there.

    Folders are listed rather than files looked for, which takes far less time
    on a network file system.

    Raises:
        InputError: Maps are missing under ``'raise'``, or all are.
    """
    listed: dict[str, set[str]] = {}
    kept, missing = [], []
    for entry, path in zip(entries, paths, strict=True):
        folder, _, name = path.rpartition('/')
        if folder not in listed:
            listed[folder] = set(_list_files(folder))
        found = name in listed[folder]
        (kept if found else missing).append((entry, path))
    if not missing:
        return entries
    image, path = missing[0][0]['img_path'], missing[0][1]
    text = (
        f'{len(missing)} of {len(entries)} images have no label maps, e.g. '
        f'{image}, for which there is no {path}'
    )
    if on_missing == 'raise' or not kept:
        hint = ''
        others = {
            os.path.splitext(name)[1]
            for names in listed.values()
            for name in names
        } - {suffix}
        if others and not kept:
            hint = (
                f' (there are files with the suffix {sorted(others)[:5]}, '
                f'while region_suffix is {suffix!r})'
            )
        raise InputError(
            f'{text}{hint}. Make them with create_fh_masks.py, or set '
            "on_missing='skip' to train on the images that have maps"
        )
    print_log(
        f'{text}. They are left out',
        logger='current',
        level=logging.WARNING,
    )
    return [entry for entry, _ in kept]


def _list_files(folder: str) -> list[str]:
    try:
        return list(fileio.list_dir_or_file(folder, list_dir=False))
    except FileNotFoundError:
        return []


@DATASETS.register_module()
class RegionDataset(_RegionFiles, CustomDataset):
    """A folder of images and one of their label maps.

    The samples are those of MMPretrain's ``CustomDataset``, with the key
    ``region_path`` for ``ropim_mm.LoadRegions``.

    Args:
        data_prefix: ``img_path`` and ``region_path``, folders below
            ``data_root``.
        region_suffix: Of the files of label maps: ``'.png'`` as
            ``create_fh_masks.py`` writes them, or ``'.npy'`` as released.
        on_missing: What happens at the start if an image has no file of maps:
            ``'raise'``, or ``'skip'`` to leave such images out and say how
            many.
        **kwargs: ``data_root``, ``ann_file``, ``with_label``, ``extensions``,
            ``pipeline`` and the rest of ``CustomDataset``'s.

    Raises:
        InputError: ``data_prefix`` lacks ``region_path``, ``on_missing`` is
            another word, or maps are missing.
    """

    @property
    def _image_root(self) -> str:
        return self.img_prefix


@DATASETS.register_module()
class RegionZip(_RegionFiles, ImageZip):
    """Images in a zip archive and a folder of their label maps.

    The maps of the member ``train/cat/1.jpg`` are ``train/cat/1.png`` in the
    folder, as ``create_fh_masks.py ARCHIVE.zip FOLDER`` writes them. The
    samples are those of ``ropim_mm.ImageZip``, with ``region_path``.

    Args:
        data_prefix: ``dict(region_path=FOLDER)``.
        region_suffix: See :class:`RegionDataset`.
        on_missing: See :class:`RegionDataset`.
        **kwargs: ``zip_file``, ``prefix`` and the rest of ``ImageZip``'s.

    Raises:
        InputError: As for :class:`RegionDataset` and ``ImageZip``.
    """

    def __init__(self, zip_file: str, *, data_prefix: dict, **kwargs) -> None:
        if isinstance(data_prefix, dict):
            data_prefix = dict(data_prefix, img_path='')
        super().__init__(zip_file, data_prefix=data_prefix, **kwargs)

    @property
    def _image_root(self) -> str:
        return self.reader.path


@DATASETS.register_module()
class CocoRegionDataset(BaseDataset):
    """Images whose regions are COCO annotations, panoptic or instances.

    Which of them is seen from ``ann_file``. The samples carry ``img_path``
    and, for ``ropim_mm.LoadRegions``,

    - panoptic: ``region_path``, the PNG, and ``segment_ids``, int64 (n,);
    - instances: ``instances``, a list of dicts with ``segmentation``.

    An image without annotations has no instances, hence no regions. Crowds
    are regions, too.

    Args:
        ann_file: JSON file in COCO's format.
        data_prefix: ``img_path``, and for panoptic annotations
            ``region_path``, the folder of PNGs; below ``data_root``.
        on_missing: What happens at the start if a panoptic PNG is missing,
            or an image that is not annotated: ``'raise'``, or ``'skip'`` to
            leave such images out and say how many.
        **kwargs: ``data_root``, ``pipeline``, ``indices`` and the rest of
            MMPretrain's ``BaseDataset``'s.

    Raises:
        InputError: The file is not in COCO's format, PNGs are missing, or
            pycocotools is, which instances need.
    """

    def __init__(
        self,
        ann_file: str,
        data_prefix: dict,
        on_missing: str = 'raise',
        **kwargs,
    ) -> None:
        _check_policy(type(self).__name__, on_missing)
        self.on_missing = on_missing
        super().__init__(ann_file=ann_file, data_prefix=data_prefix, **kwargs)

    def load_data_list(self) -> list[dict]:
        """One entry an image, in the file's order."""
        content = self._read()
        entries = {
            image['id']: dict(
                img_path=fileio.join_path(self.img_prefix, image['file_name'])
            )
            for image in content['images']
        }
        annotations = content['annotations']
        unknown = {a['image_id'] for a in annotations} - set(entries)
        if unknown:
            raise InputError(
                f'{self.ann_file} annotates the images {sorted(unknown)[:10]},'
                ' which it does not list under "images"'
            )
        if annotations and 'segments_info' in annotations[0]:
            return self._add_panoptic(entries, annotations)
        load_coder()  # rather now than in a worker
        for entry in entries.values():
            entry['instances'] = []
        for each in annotations:
            entries[each['image_id']]['instances'].append(
                dict(segmentation=each.get('segmentation'))
            )
        return list(entries.values())

    def _add_panoptic(
        self, entries: dict[int, dict], annotations: list[dict]
    ) -> list[dict]:
        folder = self.data_prefix.get('region_path')
        if not folder:
            raise InputError(
                f'{self.ann_file} holds panoptic annotations; set '
                'data_prefix.region_path to the folder of their PNGs'
            )
        for each in annotations:
            entries[each['image_id']].update(
                region_path=fileio.join_path(folder, each['file_name']),
                segment_ids=np.array(
                    [segment['id'] for segment in each['segments_info']],
                    dtype=np.int64,
                ),
            )
        everything = list(entries.values())
        # An image without an annotation cannot have this file.
        paths = [
            entry.get('region_path', f'{folder}/(not annotated)')
            for entry in everything
        ]
        return _keep_present(everything, paths, self.on_missing, '.png')

    def _read(self) -> dict:
        try:
            content = json.loads(fileio.get(self.ann_file))
        except FileNotFoundError:
            raise InputError(
                f'no file {self.ann_file}; expected COCO annotations'
            ) from None
        except ValueError as error:
            raise InputError(
                f'{self.ann_file} is not JSON: {error}'
            ) from error
        found = sorted(content) if isinstance(content, dict) else []
        if 'images' not in found or 'annotations' not in found:
            raise InputError(
                f'{self.ann_file} is not in the format of COCO: expected '
                f'"images" and "annotations" at the top, found {found[:10]}'
            )
        return content
