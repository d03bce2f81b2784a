"""Memory of the pool is reused when no tensor or view refers to it, and never before."""

import threading

import numpy as np
import pytest
import torch

from distrec.core import buffer_pool as pool
from distrec.core.buffer_pool import empty, select_rows

LIKE = torch.empty(0)
ROWS = 2**14  # of 64 float32: 4 MiB


@pytest.fixture(autouse=True)
def empty_pool(monkeypatch):
    monkeypatch.setattr(pool, "_free", [])


def free_sizes() -> list[int]:
    return sorted(len(memory) for memory in pool._free)


def test_released_memory_is_reused():
    first = empty([ROWS, 64], LIKE)
    address = first.data_ptr()
    del first
    again = empty([ROWS + 100, 64], LIKE)  # a little larger, as in the next step
    assert again.data_ptr() == address and again.shape == (ROWS + 100, 64) and again.dtype == torch.float32
    assert free_sizes() == []


@pytest.mark.parametrize("keep", [lambda x: x[5:], lambda x: x.numpy(), lambda x: x.view(torch.int32).numpy()[::2]])
def test_a_view_keeps_the_memory(keep):
    kept = keep(empty([ROWS, 64], LIKE).fill_(3.0))
    before = np.array(kept)
    empty([ROWS, 64], LIKE).fill_(7.0)
    assert np.array_equal(kept, before)
    assert len(free_sizes()) == 1  # the second one
    del kept
    assert len(free_sizes()) == 2


def test_a_slightly_small_block_is_replaced_and_a_much_larger_one_is_not_used():
    sizes = [ROWS, ROWS * 3 // 2, 16 * ROWS]
    for rows in sizes:
        empty([rows, 64], LIKE)
    assert len(free_sizes()) == 2 and free_sizes()[0] >= 256 * sizes[1] and free_sizes()[1] >= 256 * sizes[2]
    one = empty([ROWS, 64], LIKE)
    assert len(free_sizes()) == 1 and free_sizes()[0] >= 256 * sizes[2]
    del one


def test_small_sizes_other_dtypes_and_devices():
    assert empty([3, 4], LIKE).shape == (3, 4) and empty([0, 64], LIKE).shape == (0, 64)
    assert empty([2**20], LIKE, torch.int32).dtype == torch.int32
    assert empty([2**20], LIKE.double()).dtype == torch.float64
    assert empty([2**20], torch.empty(0, device="meta")).device.type == "meta"


def test_select_rows():
    rows_VD = torch.randn(1000, 64, requires_grad=True)
    index_U = torch.randint(0, 1000, (ROWS,))
    selected = select_rows(rows_VD, index_U)
    assert torch.equal(selected, rows_VD.detach()[index_U]) and not selected.requires_grad
    with pytest.raises(IndexError):
        select_rows(rows_VD, torch.tensor([1000]))


def test_a_gradient_kept_by_autograd_is_not_overwritten():
    leaf = torch.randn(ROWS, 64, requires_grad=True)
    (leaf * empty([ROWS, 64], LIKE).fill_(2.0)).sum().backward()
    kept = leaf.grad
    for _ in range(3):
        empty([ROWS, 64], LIKE).fill_(9.0)
    assert (kept == 2.0).all()


@pytest.mark.long
def test_threads_never_share_memory():
    overwritten = []

    def work(value: int) -> None:
        draws = np.random.default_rng(value)
        for _ in range(150):
            own = [empty([int(draws.integers(2**18, 2**20))], LIKE, torch.int32).fill_(value) for _ in range(3)]
            overwritten.extend(value for tensor in own if not (tensor == value).all())

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads) and overwritten == []
    assert 1 <= len(free_sizes()) <= 36  # four threads with three at a time; sizes differ by a factor of four
