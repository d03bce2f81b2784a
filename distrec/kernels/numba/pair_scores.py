"""Scores of each user with its own items on the CPU: a sampled dense-dense matrix product and its gradients, compiled.

B pairs of a user and N items, as indices into U user rows and V item rows. P = B * N flat indices into (B, N), C chunks
of pairs. Nothing of size (B, N, D) is built. The flat indices are first grouped by item, by a counting sort. Every loop
then visits items in order and accesses only the user rows at random, of which there are fewer: 1024 rows of D = 64 stay
in the cache of a core, where 41,000 item rows do not fit. The order of each sum is fixed (for an item by flat index,
for a user by item), so the number of threads changes no digit.

Measured for B = 1024, N = 800, D = 64, 41,000 items, float32, two threads, on a machine with a shared cache: 27 ms, and
40 ms where scores and user gradients go through the pairs and read item rows at random. benchmarks/scores.py has the
alternatives that were slower.
"""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from distrec.core.buffer_pool import empty
from distrec.kernels.numba.intrinsics import dot
from distrec.kernels.numba.launch import loop, run
from distrec.kernels.numba.weighted_sums import add_to_rows, add_weighted
from distrec.kernels.shapes import check_shapes

BLOCKS = 64  # of items with about equally many scores each, so that popular items do not leave threads idle
SLICE = 16  # minimum number of columns of the user gradients that a thread has for itself


class PairScores(torch.autograd.Function):
    """`models.scoring.pair_scores` for float32 and float64 rows."""

    @staticmethod
    def forward(ctx, users_UD, items_VD, user_index_B, item_index_BN):
        check_shapes(users_UD, items_VD, user_index_B, item_index_BN)
        users_UD, items_VD = users_UD.contiguous(), items_VD.contiguous()
        user_index_B, item_index_BN = user_index_B.contiguous(), item_index_BN.contiguous()
        # item_index_BN is not read again but saved, so that autograd detects an in-place change before the backward.
        ctx.save_for_backward(users_UD, items_VD, user_index_B, item_index_BN)
        start_CV = np.empty((torch.get_num_threads(), len(items_VD) + 1), np.int32)
        flat_P = empty([item_index_BN.numel()], users_UD, torch.int32).numpy()
        run(GROUP, item_index_BN.numpy(), start_CV, flat_P)
        ctx.grouped = start_CV, flat_P
        scores_BN = empty(item_index_BN.shape, users_UD)
        run(SCORES, *_arrays(users_UD, items_VD, user_index_B), start_CV, flat_P, scores_BN.numpy())
        return scores_BN

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_BN):
        users_UD, items_VD, user_index_B, _ = ctx.saved_tensors
        start_CV, flat_P = ctx.grouped
        start_V = (start_CV - start_CV[:, :1]).sum(0)
        grad_BN, users_grad, items_grad = grad_BN.contiguous(), None, None
        user_P, grad_P = (empty([len(flat_P)], grad_BN, dtype).numpy() for dtype in (torch.int32, grad_BN.dtype))
        run(GATHER_BY_ITEM, *_arrays(user_index_B, grad_BN), start_CV, start_V, flat_P, user_P, grad_P)
        if ctx.needs_input_grad[0]:
            users_grad = torch.zeros_like(users_UD)
            slices = max(1, min(torch.get_num_threads(), users_UD.shape[1] // SLICE))
            run(USERS_GRAD, *_arrays(items_VD), start_V, user_P, grad_P, slices, users_grad.numpy())
        if ctx.needs_input_grad[1]:
            items_grad = empty(items_VD.shape, items_VD)
            run(ITEMS_GRAD, *_arrays(users_UD), start_V, user_P, grad_P, items_grad.numpy())
        return users_grad, items_grad, None, None


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().numpy() for tensor in tensors]


@njit
def _check(index, rows):
    """Raise IndexError for an index out of range: compiled code would read and write foreign memory."""
    if len(index) > 0 and (index.min() < 0 or index.max() >= rows):
        raise IndexError("an index outside the rows of the batch")


def _group(item_index_BN, start_CV, flat_P):
    """Group flat indices by chunk of the pairs and by item, ascending within an item; write where each group starts.

    Each thread owns a chunk, its flat indices and its scores: threads that write alternately to one cache line wait for
    each other, which made two threads as slow as one.
    """
    (pairs, n), rows, chunks = item_index_BN.shape, start_CV.shape[1] - 1, len(start_CV)
    _check(item_index_BN.ravel(), rows)
    for chunk in prange(chunks):
        first, end = chunk * pairs // chunks, (chunk + 1) * pairs // chunks
        next_V = np.zeros(rows, np.int32)
        for b in range(first, end):
            for k in range(n):
                next_V[item_index_BN[b, k]] += 1
        total = first * n
        for v in range(rows):
            start_CV[chunk, v] = total
            total, next_V[v] = total + next_V[v], total
        start_CV[chunk, rows] = total
        for b in range(first, end):
            for k in range(n):
                flat_P[next_V[item_index_BN[b, k]]] = b * n + k
                next_V[item_index_BN[b, k]] += 1


@njit
def _first_row(start_V, block):
    """Return the first item row of a block."""
    if block == BLOCKS:
        return len(start_V) - 1
    return np.searchsorted(start_V, start_V[-1] * block // BLOCKS)


@njit
def _pair(flat, inverse_n):
    """Return `flat // N` without a division; `inverse_n` is 1 / N. Adding 0.5 keeps it clear of rounding errors."""
    return np.int64((flat + 0.5) * inverse_n)


def _scores(users_UD, items_VD, user_index_B, start_CV, flat_P, scores_BN):
    _check(user_index_B, len(users_UD))
    scores_P, inverse_n = scores_BN.ravel(), 1.0 / scores_BN.shape[1]
    for chunk in prange(len(start_CV)):
        for v in range(len(items_VD)):
            for p in flat_P[start_CV[chunk, v] : start_CV[chunk, v + 1]]:
                scores_P[p] = dot(users_UD, user_index_B[_pair(p, inverse_n)], items_VD, v)


def _gather_by_item(user_index_B, grad_BN, start_CV, start_V, flat_P, user_P, grad_P):
    """Write the user index and gradient of each score, grouped by item: the sums then read them sequentially."""
    flat_grad_P, inverse_n = grad_BN.ravel(), 1.0 / grad_BN.shape[1]
    for block in prange(BLOCKS):
        for v in range(_first_row(start_V, block), _first_row(start_V, block + 1)):
            k = start_V[v]
            for chunk in range(len(start_CV)):
                for p in flat_P[start_CV[chunk, v] : start_CV[chunk, v + 1]]:
                    user_P[k], grad_P[k] = user_index_B[_pair(p, inverse_n)], flat_grad_P[p]
                    k += 1


def _users_grad(items_VD, start_V, user_P, grad_P, slices, out_UD):
    dim = out_UD.shape[1]
    for k in prange(slices):
        first, end = k * (dim // SLICE) // slices * SLICE, (k + 1) * (dim // SLICE) // slices * SLICE
        if k == slices - 1:
            end = dim
        for v in range(len(items_VD)):
            add_to_rows(out_UD, user_P, grad_P, start_V[v], start_V[v + 1], items_VD, v, first, end)


def _items_grad(users_UD, start_V, user_P, grad_P, out_VD):
    for block in prange(BLOCKS):
        for v in range(_first_row(start_V, block), _first_row(start_V, block + 1)):
            out_VD[v] = 0
            add_weighted(out_VD, v, users_UD, user_P, grad_P, start_V[v], start_V[v + 1])


GROUP, SCORES, GATHER_BY_ITEM = loop(_group), loop(_scores), loop(_gather_by_item)
USERS_GRAD, ITEMS_GRAD = loop(_users_grad), loop(_items_grad)
