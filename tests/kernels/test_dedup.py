"""De-duplication against numpy's."""

import numpy as np
import pytest

from distrec.kernels.dedup import unique_ids, unique_of

UNIQUE = {"sorted": (500, 100_000), "marked": (500, 10), "marked by compiled loops": (70_000, 3000)}


@pytest.mark.parametrize(("count", "size"), UNIQUE.values(), ids=UNIQUE.keys())
def test_unique_ids_is_numpy_unique_in_every_way(count, size):
    ids = np.random.default_rng(0).integers(0, size, count).astype(np.int32)
    unique, place = unique_ids(ids, size)
    assert np.array_equal(unique, np.unique(ids)) and np.array_equal(unique[place], ids)
    assert unique.dtype == place.dtype == np.int32
    assert [len(a) for a in unique_ids(ids[:0], size)] == [0, 0]


@pytest.mark.parametrize("wrong", [-1, 3000])
def test_an_id_outside_the_range(wrong):
    with pytest.raises(IndexError, match="outside the range"):
        unique_ids(np.full(70_000, wrong, np.int32), 3000)


@pytest.mark.parametrize(("count", "size"), UNIQUE.values(), ids=UNIQUE.keys())
def test_several_arrays_by_other_numbers(count, size):
    draws = np.random.default_rng(1)
    ids, slot_V = draws.integers(0, size, count).astype(np.int32), draws.permutation(size).astype(np.int32)
    parts = [ids[:7], ids[:0], ids[7:]]
    slots, places = unique_of(parts, size, slot_V)
    assert np.array_equal(slots, np.unique(slot_V[ids])) and slots.dtype == np.int32
    for part, place in zip(parts, places, strict=True):
        assert np.array_equal(slots[place], slot_V[part]) and place.dtype == np.int32
