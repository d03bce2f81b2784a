"""Zeroed memory, small and in huge pages."""

import pytest
import torch

from distrec.core.huge_pages import zeros


@pytest.mark.parametrize("shape", [(0,), (3, 4), (2**20, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_zeros(shape, dtype):
    found = zeros(shape, dtype, torch.device("cpu"))
    assert found.shape == shape and found.dtype == dtype and not found.any()
    if found.nbytes >= 2**21:
        assert found.data_ptr() % 2**21 == 0
    found.fill_(1)  # writable, and of its full size
    assert found.sum(dtype=torch.int64) == found.numel()
