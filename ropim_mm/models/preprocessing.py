"""From a batch of the loader to what a method takes."""

from __future__ import annotations

import torch
from mmpretrain.models.utils import SelfSupDataPreprocessor

from ropim_mm.errors import InputError
from ropim_mm.models.layers.bit_planes import unpack_bits
from ropim_mm.registry import MODELS


@MODELS.register_module()
class RegionDataPreprocessor(SelfSupDataPreprocessor):
    """MMPretrain's preprocessor, for batches of ``ropim_mm.PackRegions``.

    Regions come as one tensor of bits, are moved to the device in one piece
    and put on the data samples as ``regions``, bool (R, H, W), views of one
    tensor; so are the permutations, as ``shuffle_ids``, int64 (L,). A batch
    without them is treated as by MMPretrain's. Arguments are the same.
    """

    def forward(self, data: dict, training: bool = False) -> dict:
        """Normalise images; move all to the device.

        Args:
            data: ``inputs``, ``data_samples`` and optionally ``region_bits``
                uint8 (B, P, H, W) with ``region_count`` int (B,), and
                ``shuffle_ids`` int64 (B, L).
            training: As for MMPretrain's.

        Returns:
            ``inputs`` (B, C, H, W) float32 and ``data_samples``.

        Raises:
            InputError: There are regions and no data samples to put them on.
        """
        data = dict(data)
        bits = data.pop('region_bits', None)
        count = data.pop('region_count', None)
        order = data.pop('shuffle_ids', None)
        result = super().forward(data, training)
        if bits is not None:
            # The counts are all one number, still on the CPU.
            masks = unpack_bits(self.cast_data(bits), int(count[0]))
            _put(result['data_samples'], 'regions', masks)
        if order is not None:
            _put(result['data_samples'], 'shuffle_ids', self.cast_data(order))
        return result


def _put(samples: list | None, name: str, values: torch.Tensor) -> None:
    if samples is None or len(samples) != len(values):
        raise InputError(
            f'the batch has {name} of {len(values)} images and '
            f'{len(samples or ())} data samples; expected one each, as '
            'ropim_mm.PackRegions gives them'
        )
    for sample, value in zip(samples, values.unbind(), strict=True):
        sample.set_field(value, name)
