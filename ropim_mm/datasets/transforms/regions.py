"""Regions beside the image: loaded or made, chosen, packed for the batch.

.. code-block:: python

    train_pipeline = [
        dict(type='ropim_mm.LoadImage'),
        dict(type='ropim_mm.LoadRegions'),  # or ropim_mm.MakeRegions
        dict(type='ropim_mm.RandomResizedCrop', scale=224, ...),
        dict(type='RandomFlip', prob=0.5),
        dict(
            type='ropim_mm.SelectRegions',
            num_regions=8,
            patch_size=16,
            as_bits=True,
        ),
        dict(type='ropim_mm.PackRegions'),
    ]
    data_preprocessor = dict(type='ropim_mm.RegionDataPreprocessor', ...)

Between the first two and the last two, the label maps of an image are under
``gt_seg_map``. Steps that move pixels have to move them as well:

- ``ropim_mm.RandomResizedCrop`` and MMCV's ``RandomFlip``, ``Resize``,
  ``RandomResize`` and ``CenterCrop`` do. ``Pad`` fills the maps with a
  number, 255 unless told, that has no meaning in them: do not use it;
- MMPretrain's ``RandomCrop``, ``RandomResizedCrop``, ``ResizeEdge``,
  ``Albumentations`` and the like move the image alone. This is an error, see
  :func:`~ropim_mm.datasets.transforms.cropping.check_in_step`, which tells
  even where the sizes are equal, unless a flip or another of the steps above
  stands between it and ``SelectRegions`` and runs for every sample;
- MMPretrain's ``Rotate``, ``Shear`` and ``Translate`` (also in
  ``RandAugment`` and ``AutoAugment``) move the image alone and leave no
  trace: do not use them;
- steps that change colours only may stand anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmpretrain.datasets.transforms import PackInputs

from ropim_mm.datasets.coco_regions import instance_maps, panoptic_maps
from ropim_mm.datasets.label_maps import LabelMaps, decode_label_maps
from ropim_mm.datasets.regions import (
    check_fh_settings,
    check_sample_type,
    felzenszwalb_maps,
)
from ropim_mm.datasets.shared_cache import SharedCache
from ropim_mm.datasets.transforms.cropping import (
    check_in_step,
    record_step,
)
from ropim_mm.datasets.transforms.loading import (
    FileLoader,
    UnreadableFileError,
)
from ropim_mm.errors import InputError
from ropim_mm.models.layers.bit_planes import pack_bits
from ropim_mm.models.layers.patches import Size, to_pair
from ropim_mm.registry import TRANSFORMS


class UnreadableRegionsError(UnreadableFileError):
    """Regions of an image cannot be read, or do not fit it."""


def keep_maps(results: dict, maps: LabelMaps) -> dict:
    """Put label maps where the steps of a pipeline find them."""
    results['gt_seg_map'] = maps.index
    results['region_tables'] = maps.tables
    record_step(results)
    return results


@TRANSFORMS.register_module()
class LoadRegions(FileLoader):
    """Load the label maps of an image, from a file or from annotations.

    Stands after ``ropim_mm.LoadImage`` and before any step that changes the
    image's size.

    **Required keys:**

    - img: (H, W, C)
    - img_path (str)
    - one of:

      - region_path (str): file of label maps, by ``create_fh_masks.py`` or a
        released ``.npy``; or with ``segment_ids`` (int64 array) a COCO
        panoptic PNG
      - instances (list[dict]): COCO annotations with ``segmentation``

    **Added keys:**

    - gt_seg_map: (H, W) or (H, W, K) of unsigned integers, and
      region_tables: what they mean, see
      :class:`~ropim_mm.datasets.label_maps.LabelMaps`
    - region_step: which image they are in step with, for a check

    Args:
        on_error: What happens to an image whose maps are missing, damaged or
            of another size: ``'raise'`` or ``'skip'``, as for
            ``ropim_mm.LoadImage``.
        cache_bytes: Keep files in memory, compressed as they are, until they
            take this many bytes; then the rest is read again each time. The
            memory belongs to a training process and is shared by all its
            (forked) loader workers. 0 for none.
        backend_args: Storage backend of :func:`mmengine.fileio.get`.

    Raises:
        InputError: ``on_error`` is another word, or ``cache_bytes`` is more
            than there is; by :meth:`transform`, the dataset gives no regions.
        UnreadableRegionsError: By :meth:`transform`, under ``'raise'``.
    """

    kind = 'regions'
    error = UnreadableRegionsError

    def __init__(
        self,
        on_error: str = 'raise',
        cache_bytes: int = 0,
        backend_args: dict | None = None,
    ) -> None:
        super().__init__(on_error)
        self.cache = SharedCache(cache_bytes) if cache_bytes else None
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict | None:
        """Add the maps; None asks the dataset for another sample."""
        image = results['img_path']
        shape = results['img'].shape[:2]
        path = results.get('region_path')
        instances = results.pop('instances', None)
        if path is None and instances is None:
            raise InputError(
                f'the dataset gives no regions for {image}: its samples have '
                f'the fields {sorted(results)} and neither region_path nor '
                'instances. Use ropim_mm.RegionDataset, RegionZip or '
                'CocoRegionDataset; or ropim_mm.MakeRegions in place of '
                'LoadRegions'
            )
        try:
            if path is None:
                maps = instance_maps(instances, shape)
            else:
                maps = self._read(results, path)
            if maps.shape != shape:
                raise InputError(
                    f'it is {_text(maps.shape)} (height x width) and its '
                    f'image {image} is {_text(shape)}. Make the maps from '
                    'the images they are used with (create_fh_masks.py)'
                )
        except Exception as error:
            self.refuse(path or f'of {image}', error)
            return None
        return keep_maps(results, maps)

    def _read(self, results: dict, path: str) -> LabelMaps:
        data = self.cache.get(path) if self.cache else None
        if data is None:
            try:
                data = fileio.get(path, backend_args=self.backend_args)
            except FileNotFoundError:
                raise InputError(
                    f'there is no such file, which the image '
                    f'{results["img_path"]} needs; make it with '
                    'create_fh_masks.py'
                ) from None
            if self.cache:
                self.cache.put(path, data)
        segment_ids = results.pop('segment_ids', None)
        if segment_ids is not None:
            return panoptic_maps(data, segment_ids)
        return decode_label_maps(data)

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(on_error={self.on_error!r}, '
            f'cache_bytes={self.cache.capacity if self.cache else 0}, '
            f'backend_args={self.backend_args})'
        )


def _text(shape: Sequence[int]) -> str:
    return 'x'.join(map(str, shape))


@TRANSFORMS.register_module()
class MakeRegions(BaseTransform):
    """Segment the image on the fly, instead of loading label maps.

    The same maps as the files of ``create_fh_masks.py`` hold, but far slower
    than loading them: for small images, and to try settings.

    **Required keys:**

    - img: (H, W, 3) uint8, blue, green, red

    **Added keys:**

    - gt_seg_map, region_tables, region_step: as by :class:`LoadRegions`

    Args:
        scales: One a map, see
            :func:`~ropim_mm.datasets.regions.felzenszwalb_maps`.
        min_sizes: Pixels, one a map; None for the same numbers as ``scales``.
        sigma: Pixels.

    Raises:
        InputError: The settings do not fit together.
    """

    def __init__(
        self,
        scales: Sequence[float] = (1000,),
        min_sizes: Sequence[int] | None = None,
        sigma: float = 0.8,
    ) -> None:
        self.scales = tuple(scales)
        self.min_sizes = tuple(scales if min_sizes is None else min_sizes)
        self.sigma = sigma
        check_fh_settings(self.scales, self.min_sizes, sigma)

    def transform(self, results: dict) -> dict:
        """Add the maps."""
        image = np.ascontiguousarray(results['img'][..., ::-1])
        maps = felzenszwalb_maps(
            image, self.scales, self.min_sizes, self.sigma
        )
        return keep_maps(results, LabelMaps.stacked(maps))

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(scales={self.scales}, '
            f'min_sizes={self.min_sizes}, sigma={self.sigma})'
        )


@TRANSFORMS.register_module()
class SelectRegions(BaseTransform):
    """Choose the regions that R-MAE trains on; after cropping and flipping.

    **Required keys** (not with ``num_regions=0``)**:**

    - img: (H, W, C)
    - gt_seg_map, region_tables, region_step: of :class:`LoadRegions` or
      :class:`MakeRegions`

    **Removed keys:**

    - gt_seg_map, region_tables, region_step

    **Added keys** (none with ``num_regions=0``)**:**

    - regions: bool (R, H, W), all False where no region is left to choose;
      with ``as_bits`` instead region_bits: uint8 (ceil(R / 8), H, W), where
      bit r of plane p is region 8 p + r, and region_count: int, R
    - shuffle_ids: int64 (L,), only for ``'random_fg'``: a permutation of the
      patches, the first ones being visible

    Args:
        num_regions: R; 0 for none, as for pixels only.
        patch_size: Side or (height, width) of a patch, in pixels.
        sample_type: ``'random'`` chooses among all regions of the crop;
            ``'random_fg'`` among those with a pixel in a visible patch.
        filter_small_patches: Leave out regions that touch a single patch.
        region_mask_ratio: Share of patches hidden from the region encoder,
            in (0, 1), the same as the model's. Only ``'random_fg'`` reads it.
        as_bits: Give bits, for :class:`PackRegions`; masks are never made.

    Raises:
        InputError: A setting is out of range; by :meth:`transform`, there
            are no label maps, they are not in step with the image, or the
            crop is no multiple of the patch.
    """

    def __init__(
        self,
        num_regions: int = 8,
        patch_size: Size = 16,
        sample_type: str = 'random',
        filter_small_patches: bool = False,
        region_mask_ratio: float = 0.75,
        as_bits: bool = False,
    ) -> None:
        check_sample_type(sample_type)
        if num_regions < 0:
            raise InputError(
                f'SelectRegions: num_regions is {num_regions}; expected 0 '
                '(pixels only) or more (8 is usual)'
            )
        if not 0 < region_mask_ratio < 1:
            raise InputError(
                f'SelectRegions: region_mask_ratio is {region_mask_ratio}; '
                'expected a number in (0, 1), 0.75 being usual'
            )
        self.num_regions = num_regions
        self.patch_size = to_pair(patch_size)
        self.sample_type = sample_type
        self.filter_small_patches = filter_small_patches
        self.region_mask_ratio = region_mask_ratio
        self.as_bits = as_bits

    def transform(self, results: dict) -> dict:
        """Replace the label maps by ``regions`` and ``shuffle_ids``."""
        if self.num_regions:
            check_in_step(results)
        index = results.pop('gt_seg_map', None)
        tables = results.pop('region_tables', None)
        results.pop('region_step', None)
        if not self.num_regions:
            return results
        if index is None or tables is None:
            raise InputError(
                f'SelectRegions found no label maps of '
                f'{results.get("img_path")}; put ropim_mm.LoadRegions or '
                'ropim_mm.MakeRegions before it'
            )
        maps = LabelMaps(index, tables)
        select = maps.select_bits if self.as_bits else maps.select
        regions, shuffle_ids = select(
            self.num_regions,
            self.patch_size,
            self.sample_type,
            self.filter_small_patches,
            self.region_mask_ratio,
        )
        if self.as_bits:
            results['region_bits'] = regions
            results['region_count'] = self.num_regions
        else:
            results['regions'] = regions
        if shuffle_ids is not None:
            results['shuffle_ids'] = shuffle_ids
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(num_regions={self.num_regions}, '
            f'patch_size={self.patch_size}, '
            f'sample_type={self.sample_type!r}, '
            f'filter_small_patches={self.filter_small_patches}, '
            f'region_mask_ratio={self.region_mask_ratio}, '
            f'as_bits={self.as_bits})'
        )


@TRANSFORMS.register_module()
class PackRegions(PackInputs):
    """MMPretrain's ``PackInputs``, with the regions as one item of the batch.

    ``PackInputs(algorithm_keys=('regions', 'shuffle_ids'))`` works as well,
    but then each image's regions travel from the worker to the training
    process by themselves, unpinned and a byte a pixel and region, which costs
    that process time. Here they are bits, collated and pinned as
    the images are. ``ropim_mm.RegionDataPreprocessor`` puts them on the data
    samples, on the device.

    **Required keys:**

    - img, and what else MMPretrain's step takes
    - regions (optional): bool tensor (R, H, W); or region_bits and
      region_count, of ``SelectRegions(as_bits=True)``
    - shuffle_ids (optional): int64 tensor (L,)

    **Result:** ``inputs`` and ``data_samples`` as by MMPretrain's, and

    - region_bits: uint8 (ceil(R / 8), H, W), where bit r of plane p is
      region 8 p + r; and region_count: int, R
    - shuffle_ids
    """

    def transform(self, results: dict) -> dict:
        """Pack one sample."""
        packed = super().transform(results)
        if 'regions' in results:
            packed['region_bits'] = pack_bits(results['regions'])
            packed['region_count'] = len(results['regions'])
        for key in ('region_bits', 'region_count', 'shuffle_ids'):
            if key in results:
                packed[key] = results[key]
        return packed
