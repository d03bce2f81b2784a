"""De-duplication against numpy's."""

import numpy as np
import pytest

from distrec.kernels.dedup import unique_ids, unique_of

# (ids, range): few ids, few relative to the range, many.
SIZES = {"sorted": (500, 10), "sorted in a large range": (9000, 200_000), "marked": (9000, 3000)}
each_size = pytest.mark.parametrize(("count", "size"), SIZES.values(), ids=SIZES.keys())


@each_size
def test_unique_ids_equals_numpy_unique(count, size):
    ids = np.random.default_rng(0).integers(0, size, count).astype(np.int32)
    unique, inverse = unique_ids(ids, size)
    assert np.array_equal(unique, np.unique(ids)) and np.array_equal(unique[inverse], ids)
    assert unique.dtype == inverse.dtype == np.int32
    assert [len(a) for a in unique_ids(ids[:0], size)] == [0, 0]


@pytest.mark.parametrize("wrong", [-1, 3000])
def test_id_outside_the_range(wrong):
    with pytest.raises(IndexError, match="outside the range"):
        unique_ids(np.full(70_000, wrong, np.int32), 3000)


@each_size
def test_several_arrays_with_slots(count, size):
    draws = np.random.default_rng(1)
    ids, slot_V = draws.integers(0, size, count).astype(np.int32), draws.permutation(size).astype(np.int32)
    parts = [ids[:7], ids[:0], ids[7:]]
    slots, inverses = unique_of(parts, size, slot_V)
    assert np.array_equal(slots, np.unique(slot_V[ids])) and slots.dtype == np.int32
    for part, inverse in zip(parts, inverses, strict=True):
        assert np.array_equal(slots[inverse], slot_V[part]) and inverse.dtype == np.int32
