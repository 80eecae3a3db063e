"""Masks as bits and back."""

import pytest
import torch

from ropim_mm.models.layers.bit_planes import pack_bits, unpack_bits


@pytest.mark.parametrize('count', [1, 7, 8, 9, 20])
def test_there_and_back(count):
    masks = torch.rand(3, count, 5, 6) > 0.5
    planes = torch.stack([pack_bits(each) for each in masks])
    assert planes.dtype == torch.uint8
    assert planes.shape == (3, -(-count // 8), 5, 6)
    assert torch.equal(unpack_bits(planes, count), masks)


def test_which_bit_is_which_mask():
    masks = torch.zeros(10, 1, 1, dtype=torch.bool)
    masks[[0, 3, 9]] = True
    assert pack_bits(masks).flatten().tolist() == [1 + 8, 2]
