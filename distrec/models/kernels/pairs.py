"""Scores of each user with its own items on the CPU: a sampled product of two matrices and its gradients, compiled.

B pairs of a user and N items each, as places in U rows of users and V rows of items; P = B * N places of items. Nothing
of size (B, N, D) is built. Each row of a gradient is the work of one thread, which adds the places in their order in
the batch: the number of threads changes no digit. For that the places are first grouped by item, by a counting sort.

Measured for B = 1024, N = 800, D = 64, 41,000 items, float32: scores and both gradients take 16 ms on one core, 8.4 ms
on two. benchmarks/scores.py has the ways that lost. One more that did: adding each place to its item's row in the order
of the batch, each thread to its own columns, needs no grouping. It was as fast while both tables fitted into the cache
of an idle machine, more than twice as slow with a million items, and has no more threads than a row has cache lines.
"""

import numpy as np
import torch
from numba import njit, prange

from distrec.compiled.instructions import LINE, dot, prefetch_to_read
from distrec.compiled.launch import loop, run
from distrec.models.kernels.shapes import check_shapes

AHEAD = 16  # rows of items that are asked for before their turn
CHUNKS = 4  # of the pairs, which are grouped side by side; the outcome is the same for any number
BLOCKS = 64  # of rows with about the same number of places, so that popular items do not keep one thread busy


class PairScores(torch.autograd.Function):
    """Implements `scores.pair_scores` for float32 and float64 rows."""

    @staticmethod
    def forward(ctx, users_UD, items_VD, user_at_B, item_at_BN):
        check_shapes(users_UD, items_VD, user_at_B, item_at_BN)
        users_UD, items_VD = users_UD.contiguous(), items_VD.contiguous()
        user_at_B, item_at_BN = user_at_B.contiguous(), item_at_BN.contiguous()
        ctx.save_for_backward(users_UD, items_VD, user_at_B, item_at_BN)
        scores_BN = users_UD.new_empty(item_at_BN.shape)
        run(SCORES, *_arrays(users_UD, items_VD, user_at_B, item_at_BN, scores_BN))
        return scores_BN

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_BN):
        users_UD, items_VD, user_at_B, item_at_BN = ctx.saved_tensors
        grad_BN = grad_BN.contiguous()
        users_grad = items_grad = None
        if ctx.needs_input_grad[0]:
            users_grad = torch.empty_like(users_UD)
            run(USERS_GRAD, *_arrays(items_VD, user_at_B, item_at_BN, grad_BN, users_grad))
        if ctx.needs_input_grad[1]:
            items_grad = torch.empty_like(items_VD)
            run(ITEMS_GRAD, *_arrays(users_UD, user_at_B, item_at_BN, grad_BN, items_grad))
        return users_grad, items_grad, None, None


def _arrays(*tensors: torch.Tensor) -> list[np.ndarray]:
    return [tensor.detach().numpy() for tensor in tensors]


@njit
def _check(at, rows):
    """Compiled code does not check indices: a wrong one would read, and write, others' memory."""
    if len(at) > 0 and (at.min() < 0 or at.max() >= rows):
        raise IndexError("a place outside the rows of the batch")


@njit(forceinline=True)
def _ahead(rows_VD, at_P, p):
    """Asks for the row that comes some places later."""
    if p + AHEAD < len(at_P):
        for d in range(0, rows_VD.shape[1], LINE):
            prefetch_to_read(rows_VD, at_P[p + AHEAD], d)


def _scores(users_UD, items_VD, user_at_B, item_at_BN, scores_BN):
    item_at_P, pairs, n = item_at_BN.ravel(), item_at_BN.shape[0], item_at_BN.shape[1]
    _check(user_at_B, len(users_UD))
    _check(item_at_P, len(items_VD))
    for b in prange(pairs):
        u = user_at_B[b]
        for k in range(n):
            _ahead(items_VD, item_at_P, b * n + k)
            scores_BN[b, k] = dot(users_UD, u, items_VD, item_at_BN[b, k])


def _users_grad(items_VD, user_at_B, item_at_BN, grad_BN, out_UD):
    item_at_P, n = item_at_BN.ravel(), item_at_BN.shape[1]
    _check(user_at_B, len(out_UD))
    _check(item_at_P, len(items_VD))
    start_U, pair_B = _grouped(user_at_B, len(out_UD))
    for u in prange(len(out_UD)):
        out_D = out_UD[u]
        out_D[:] = 0
        for b in pair_B[start_U[u] : start_U[u + 1]]:
            for k in range(n):
                _ahead(items_VD, item_at_P, b * n + k)
                grad, item_D = grad_BN[b, k], items_VD[item_at_BN[b, k]]
                for d in range(len(out_D)):
                    out_D[d] += grad * item_D[d]


@njit
def _grouped(at_B, rows):
    """(where the places of each row start, places by row, in order within a row): a counting sort."""
    start_R = np.zeros(rows + 1, np.int64)
    for row in at_B:
        start_R[row + 1] += 1
    start_R = np.cumsum(start_R)
    next_R, place_B = start_R[:-1].copy(), np.empty(len(at_B), np.int32)
    for b in range(len(at_B)):
        place_B[next_R[at_B[b]]] = b
        next_R[at_B[b]] += 1
    return start_R, place_B


def _items_grad(users_UD, user_at_B, item_at_BN, grad_BN, out_VD):
    pairs, n, rows = item_at_BN.shape[0], item_at_BN.shape[1], len(out_VD)
    _check(user_at_B, len(users_UD))
    _check(item_at_BN.ravel(), rows)
    # The places by item, like `_grouped`; with the place go user and gradient, so that the sums below read one after
    # another what would otherwise lie all over the batch.
    next_CV = np.zeros((CHUNKS, rows), np.int32)
    for chunk in prange(CHUNKS):
        for b in range(chunk * pairs // CHUNKS, (chunk + 1) * pairs // CHUNKS):
            for k in range(n):
                next_CV[chunk, item_at_BN[b, k]] += 1
    start_V = _starts(next_CV)
    user_P, grad_P = np.empty(pairs * n, np.int32), np.empty(pairs * n, grad_BN.dtype)
    for chunk in prange(CHUNKS):
        for b in range(chunk * pairs // CHUNKS, (chunk + 1) * pairs // CHUNKS):
            for k in range(n):
                place = next_CV[chunk, item_at_BN[b, k]]
                next_CV[chunk, item_at_BN[b, k]] = place + 1
                user_P[place], grad_P[place] = user_at_B[b], grad_BN[b, k]
    for block in prange(BLOCKS):
        for v in range(_first_row(start_V, block), _first_row(start_V, block + 1)):
            out_D = out_VD[v]
            out_D[:] = 0
            for p in range(start_V[v], start_V[v + 1]):
                grad, user_D = grad_P[p], users_UD[user_P[p]]
                for d in range(len(out_D)):
                    out_D[d] += grad * user_D[d]


@njit
def _starts(count_CV):
    """Where the places of each row start; turns counts into where those of each chunk and row start."""
    start_V = np.empty(count_CV.shape[1] + 1, np.int64)
    total = 0
    for v in range(count_CV.shape[1]):
        start_V[v] = total
        for chunk in range(len(count_CV)):
            count = count_CV[chunk, v]
            count_CV[chunk, v] = total
            total += count
    start_V[-1] = total
    return start_V


@njit
def _first_row(start_V, block):
    """Of a block of rows."""
    if block == BLOCKS:
        return len(start_V) - 1
    return np.searchsorted(start_V, start_V[-1] * block // BLOCKS)


SCORES, USERS_GRAD, ITEMS_GRAD = loop(_scores), loop(_users_grad), loop(_items_grad)
