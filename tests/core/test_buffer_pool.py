"""Memory that is taken again: never while somebody has it, always when nobody does."""

import threading

import numpy as np
import pytest
import torch

from distrec.core import buffer_pool as pool
from distrec.core.buffer_pool import empty, select_rows

LIKE = torch.empty(0)
ROWS = 2**14  # of 64 float32: 4 MiB


@pytest.fixture(autouse=True)
def nothing_free(monkeypatch):
    monkeypatch.setattr(pool, "_free", [])


def made() -> list[int]:
    return sorted(len(memory) for memory in pool._free)


def test_what_nobody_has_is_taken_again():
    first = empty([ROWS, 64], LIKE)
    where = first.data_ptr()
    del first
    again = empty([ROWS + 100, 64], LIKE)  # a little larger, as the next step's
    assert again.data_ptr() == where and again.shape == (ROWS + 100, 64) and again.dtype == torch.float32
    assert made() == []


@pytest.mark.parametrize("keep", [lambda x: x[5:], lambda x: x.numpy(), lambda x: x.view(torch.int32).numpy()[::2]])
def test_a_view_keeps_the_memory(keep):
    kept = keep(empty([ROWS, 64], LIKE).fill_(3.0))
    before = np.array(kept)
    empty([ROWS, 64], LIKE).fill_(7.0)
    assert np.array_equal(kept, before)
    assert len(made()) == 1  # the second one, which nobody has
    del kept
    assert len(made()) == 2


def test_what_is_a_little_too_small_is_replaced_and_what_is_much_larger_left_alone():
    sizes = [ROWS, ROWS * 3 // 2, 16 * ROWS]
    for rows in sizes:
        empty([rows, 64], LIKE)
    assert len(made()) == 2 and made()[0] >= 256 * sizes[1] and made()[1] >= 256 * sizes[2]
    one = empty([ROWS, 64], LIKE)
    assert len(made()) == 1 and made()[0] >= 256 * sizes[2]
    del one


def test_small_ones_and_other_kinds():
    assert empty([3, 4], LIKE).shape == (3, 4) and empty([0, 64], LIKE).shape == (0, 64)
    assert empty([2**20], LIKE, torch.int32).dtype == torch.int32
    assert empty([2**20], LIKE.double()).dtype == torch.float64
    assert empty([2**20], torch.empty(0, device="meta")).device.type == "meta"


def test_rows():
    rows_VD = torch.randn(1000, 64, requires_grad=True)
    index_U = torch.randint(0, 1000, (ROWS,))
    picked = select_rows(rows_VD, index_U)
    assert torch.equal(picked, rows_VD.detach()[index_U]) and not picked.requires_grad
    with pytest.raises(IndexError):
        select_rows(rows_VD, torch.tensor([1000]))


def test_a_gradient_that_autograd_keeps_is_not_written_over():
    leaf = torch.randn(ROWS, 64, requires_grad=True)
    (leaf * empty([ROWS, 64], LIKE).fill_(2.0)).sum().backward()
    kept = leaf.grad
    for _ in range(3):
        empty([ROWS, 64], LIKE).fill_(9.0)
    assert (kept == 2.0).all()


def test_threads_never_share_memory():
    wrong = []

    def work(mark: int) -> None:
        draws = np.random.default_rng(mark)
        for _ in range(150):
            mine = [empty([int(draws.integers(2**18, 2**20))], LIKE, torch.int32).fill_(mark) for _ in range(3)]
            wrong.extend(mark for one in mine if not (one == mark).all())

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads) and wrong == []
    assert 1 <= len(made()) <= 36  # four threads had three each at once; sizes differ by four times
