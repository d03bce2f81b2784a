"""Scores of each user with its own items on GPUs: what `pairs.py` is on the CPU, by Triton's programs.

Both gradients are sums of weighted rows of the other side, over places grouped by the row that gets them. A stable
sort keeps the places of a row in their order in the batch, and a program adds them in that order: no run differs from
another. A row with more than CHUNK places, such as a popular item, is shared out: its chunks are summed by programs of
their own, and then added in order. Up to CHUNK places a row has the digits of the CPU's loops; scores have the order
of Triton's reduction, which depends on D and N and nothing else.

Which chunk is whose, the programs find out themselves: an operation that prepares something costs the host 7 us, and
the host is what a step waits for (`benchmarks/cases/device.py`).

Nothing of size (B, N, D) is built, and nothing waits for the GPU: of the number of chunks the host knows only a bound,
and programs that are not needed end at once.
"""

from typing import Any

import torch
import triton

from distrec.kernels.shapes import check_shapes
from distrec.kernels.triton import pair_scores_programs as programs
from distrec.kernels.triton.launch import OPTIONS, aligned

CHUNK = 256  # places that one program adds one after the other
_AHEAD = 8  # rows that a program asks for at a time
_WIDTH = 128  # elements of a row that a program takes at most
_TILE = 4096  # elements of items that a program of scores takes at most


class PairScores(torch.autograd.Function):
    """Implements `scores.pair_scores` for float32 and float64 rows."""

    @staticmethod
    def forward(ctx, users_UD, items_VD, user_index_B, item_index_BN):
        check_shapes(users_UD, items_VD, user_index_B, item_index_BN)
        users_UD, items_VD, user_index_B, item_index_BN = map(
            aligned, (users_UD, items_VD, user_index_B, item_index_BN)
        )
        _check_on_cpu(user_index_B, len(users_UD))
        _check_on_cpu(item_index_BN, len(items_VD))
        ctx.save_for_backward(users_UD, items_VD, user_index_B, item_index_BN)
        return _scores(users_UD, items_VD, user_index_B, item_index_BN)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_BN):
        # Places are not checked again: autograd refuses tensors that were changed since they were.
        users_UD, items_VD, user_index_B, item_index_BN = ctx.saved_tensors
        grad_BN, users_grad, items_grad = grad_BN.contiguous(), None, None
        if ctx.needs_input_grad[0]:
            pair_B, *groups = _grouped(user_index_B, len(users_UD))
            item_index_P, grad_P = item_index_BN[pair_B].view(-1), grad_BN[pair_B].view(-1)
            users_grad = _sums(items_VD, item_index_P, grad_P, *groups, item_index_BN.shape[1])
        if ctx.needs_input_grad[1]:
            place_P, *groups = _grouped(item_index_BN.view(-1), len(items_VD))
            user_index_P = user_index_B[place_P // max(1, item_index_BN.shape[1])]
            items_grad = _sums(users_UD, user_index_P, grad_BN.view(-1)[place_P], *groups, 1)
        return users_grad, items_grad, None, None


def _check_on_cpu(at, rows):
    """GPUs check it themselves, without waiting."""
    if at.device.type == "cpu" and at.numel() and not 0 <= at.min() <= at.max() < rows:
        raise IndexError("a place outside the rows of the batch")


def _scores(users_UD, items_VD, user_index_B, item_index_BN):
    (pairs, n), dim = item_index_BN.shape, users_UD.shape[1]
    scores_BN, width = users_UD.new_empty(pairs, n), _width(dim)
    block = min(_TILE // width, triton.next_power_of_2(max(1, n)))
    _launch(
        programs.scores,
        (pairs, triton.cdiv(max(1, n), block)),  # one program also without items, to check the user's place
        *(users_UD, items_VD, user_index_B, item_index_BN, scores_BN),
        *(n, len(users_UD), len(items_VD)),
        D=dim,
        WIDTH=width,
        BLOCK=block,
        num_warps=min(4, max(1, block * width // 1024)),
    )
    return scores_BN


def _grouped(index_P, rows):
    """(places by row, in order within a row; their rows; where those of each row start, and the last end)."""
    sorted_P, place_P = torch.sort(index_P, stable=True)
    return (
        place_P,
        sorted_P,
        torch.searchsorted(sorted_P, torch.arange(rows + 1, dtype=index_P.dtype, device=index_P.device)),
    )


def _sums(rows_XD, row_index_P, weight_P, owner_G, start_R1, times):
    """For each of R rows, the sum of weight_P * rows_XD[row_at_P] over its places: `times` for each of `owner_G`."""
    count, dim = len(start_R1) - 1, rows_XD.shape[1]
    sums_RD, places = rows_XD.new_empty(count, dim), (rows_XD, row_index_P, weight_P, start_R1, times)
    slices, shape = triton.cdiv(dim, _width(dim)), {"D": dim, "WIDTH": _width(dim), "CHUNK": CHUNK, "AHEAD": _AHEAD}
    _launch(programs.first_chunks, (count, slices), *places, sums_RD, **shape, num_warps=1)
    if len(row_index_P) > CHUNK:
        later = (len(row_index_P) - 1) // CHUNK
        later_ED = rows_XD.new_empty(later, dim)
        _launch(programs.later_chunks, (later, slices), *places, owner_G, later_ED, **shape, num_warps=1)
        groups = start_R1, times, owner_G
        _launch(programs.add_chunks, (later, slices), later_ED, *groups, sums_RD, **shape, num_warps=1)
    return sums_RD


def _width(dim):
    return min(_WIDTH, triton.next_power_of_2(max(1, dim)))


def _launch(program: Any, grid: tuple[int, int], first: torch.Tensor, *arguments: Any, **options: Any) -> None:
    """Runs programs on the device of their tensors, which need not be the current one."""
    if min(grid) > 0:
        with torch.cuda.device_of(first):
            program[grid](first, *arguments, **options, **OPTIONS)
