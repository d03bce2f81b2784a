"""Scores of each user with its own items on GPUs: the counterpart of `numba/pair_scores.py`, in Triton programs.

Both gradients are sums of weighted rows of the other side. By default they are added as they come, by atomics: their
last digits differ from run to run. Under `torch.use_deterministic_algorithms` (`train.deterministic`) they are grouped
by the row that receives them. A stable sort keeps the flat indices of a row in batch order, and a program adds them in
that order, so runs are reproducible. A row with more than CHUNK summands, such as a popular item, is split: separate
programs sum its chunks, which are then added in order. Up to CHUNK summands, a row has the digits of the CPU's loops.
Scores follow the order of Triton's reduction, which depends on D and N only.

The programs work out themselves which chunk belongs to which row: an operation that prepared this would cost the host
7 us, and a step is bound by the host (`benchmarks/cases/device.py`).

Nothing of size (B, N, D) is built, and nothing synchronises with the GPU: the host knows only an upper bound on the
number of chunks, and surplus programs end at once.

Letters: P flat indices into (B, N), X rows that are read, Y rows that receive sums, G owners of groups of summands,
E chunks after the first of a row.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from distrec.kernels.shapes import check_shapes
from distrec.kernels.triton import pair_scores_programs as programs
from distrec.kernels.triton.launch import OPTIONS, aligned

CHUNK = 256  # summands that one program adds one after the other
_AHEAD = 8  # rows that a program loads ahead
_WIDTH = 128  # maximum number of elements of a row in a program
_ATOMIC_ROWS = 32  # summands that a program of `add_gradients` holds at a time
_TILE = 4096  # maximum number of elements of items in a program of `scores`


class PairScores(torch.autograd.Function):
    """`models.scoring.pair_scores` for float32 and float64 rows."""

    @staticmethod
    def forward(ctx: Any, users_UD: Tensor, items_VD: Tensor, user_index_B: Tensor, item_index_BN: Tensor) -> Tensor:
        check_shapes(users_UD, items_VD, user_index_B, item_index_BN)
        users_UD, items_VD, user_index_B, item_index_BN = map(
            aligned, (users_UD, items_VD, user_index_B, item_index_BN)
        )
        _check_on_cpu(user_index_B, len(users_UD))
        _check_on_cpu(item_index_BN, len(items_VD))
        ctx.in_order = torch.are_deterministic_algorithms_enabled()
        ctx.save_for_backward(users_UD, items_VD, user_index_B, item_index_BN)
        return _scores(users_UD, items_VD, user_index_B, item_index_BN)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BN: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        # Indices are not checked again: autograd refuses saved tensors that were changed in place.
        users_UD, items_VD, user_index_B, item_index_BN = ctx.saved_tensors
        grad_BN, users_grad, items_grad = grad_BN.contiguous(), None, None
        if not ctx.in_order:
            return *_added(users_UD, items_VD, user_index_B, item_index_BN, grad_BN), None, None
        if ctx.needs_input_grad[0]:
            pair_B, owner_B, start_Y1 = _grouped(user_index_B, len(users_UD))
            item_index_P, grad_P = item_index_BN[pair_B].view(-1), grad_BN[pair_B].view(-1)
            users_grad = _sums(items_VD, item_index_P, grad_P, owner_B, start_Y1, item_index_BN.shape[1])
        if ctx.needs_input_grad[1]:
            flat_P, owner_P, start_Y1 = _grouped(item_index_BN.view(-1), len(items_VD))
            user_index_P = user_index_B[flat_P // max(1, item_index_BN.shape[1])]
            items_grad = _sums(users_UD, user_index_P, grad_BN.view(-1)[flat_P], owner_P, start_Y1, 1)
        return users_grad, items_grad, None, None


def _check_on_cpu(index: Tensor, rows: int) -> None:
    """Raise IndexError for an index out of range on the CPU. On GPUs the programs check, without synchronising."""
    if index.device.type == "cpu" and index.numel() and not 0 <= index.min() <= index.max() < rows:
        raise IndexError("an index outside the rows of the batch")


def _scores(users_UD: Tensor, items_VD: Tensor, user_index_B: Tensor, item_index_BN: Tensor) -> Tensor:
    (pairs, n), dim = item_index_BN.shape, users_UD.shape[1]
    scores_BN, width = users_UD.new_empty(pairs, n), _width(dim)
    block = min(_TILE // width, triton.next_power_of_2(max(1, n)))
    _launch(
        programs.scores,
        (pairs, triton.cdiv(max(1, n), block)),  # one program also without items, to check the user's index
        *(users_UD, items_VD, user_index_B, item_index_BN, scores_BN),
        *(n, len(users_UD), len(items_VD)),
        D=dim,
        WIDTH=width,
        BLOCK=block,
        num_warps=min(4, max(1, block * width // 1024)),
    )
    return scores_BN


def _added(
    users_UD: Tensor, items_VD: Tensor, user_index_B: Tensor, item_index_BN: Tensor, grad_BN: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the rows of users and items, added by atomics."""
    users_grad, items_grad = torch.zeros_like(users_UD), torch.zeros_like(items_VD)
    (pairs, n), dim = item_index_BN.shape, users_UD.shape[1]
    block = min(_ATOMIC_ROWS, triton.next_power_of_2(max(1, n)))
    together = 1 if n > _ATOMIC_ROWS // 2 else _ATOMIC_ROWS // block
    _launch(
        programs.add_gradients,
        (triton.cdiv(pairs, together), min(1, n)),
        *(users_UD, items_VD, user_index_B, item_index_BN, grad_BN, users_grad, items_grad, pairs, n),
        D=dim,
        WIDTH=_width(dim),
        PAIRS=together,
        BLOCK=block,
        num_warps=4,
    )
    return users_grad, items_grad


def _grouped(index_P: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (flat indices grouped by row, ascending within a row; the row of each; start of each group, (Y + 1,))."""
    sorted_P, flat_P = torch.sort(index_P, stable=True)
    every_Y1 = torch.arange(rows + 1, dtype=index_P.dtype, device=index_P.device)
    return flat_P, sorted_P, torch.searchsorted(sorted_P, every_Y1)


def _sums(
    rows_XD: Tensor, row_index_P: Tensor, weight_P: Tensor, owner_G: Tensor, start_Y1: Tensor, times: int
) -> Tensor:
    """Return for each of Y rows the sum of weight_P[p] * rows_XD[row_index_P[p]] over its p, (Y, D).

    Each entry of `owner_G`, the receiving rows in ascending order, stands for `times` consecutive p. `start_Y1` holds
    the start of each row in `owner_G`.
    """
    count, dim = len(start_Y1) - 1, rows_XD.shape[1]
    sums_YD, summands = rows_XD.new_empty(count, dim), (rows_XD, row_index_P, weight_P, start_Y1, times)
    slices = triton.cdiv(dim, _width(dim))
    shape: dict[str, Any] = {"D": dim, "WIDTH": _width(dim), "CHUNK": CHUNK, "AHEAD": _AHEAD}
    _launch(programs.first_chunks, (count, slices), *summands, sums_YD, **shape, num_warps=1)
    if len(row_index_P) > CHUNK:
        later = (len(row_index_P) - 1) // CHUNK
        later_ED = rows_XD.new_empty(later, dim)
        _launch(programs.later_chunks, (later, slices), *summands, owner_G, later_ED, **shape, num_warps=1)
        groups = start_Y1, times, owner_G
        _launch(programs.add_chunks, (later, slices), later_ED, *groups, sums_YD, **shape, num_warps=1)
    return sums_YD


def _width(dim: int) -> int:
    return min(_WIDTH, int(triton.next_power_of_2(max(1, dim))))


def _launch(program: Any, grid: tuple[int, int], first: Tensor, *arguments: Any, **options: Any) -> None:
    """Launch programs on the device of their tensors, which need not be the current one."""
    if min(grid) > 0:
        with torch.cuda.device_of(first):  # type: ignore[no-untyped-call]
            program[grid](first, *arguments, **options, **OPTIONS)
