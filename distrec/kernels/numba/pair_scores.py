"""Scores of each user with its own items on the CPU: a sampled product of two matrices and its gradients, compiled.

B pairs of a user and N items each, as places in U rows of users and V rows of items; P = B * N places of items. Nothing
of size (B, N, D) is built. The places are first grouped by item, by a counting sort. Then every loop goes through the
items in their order, and at random only through the users, of which there are fewer: 1024 rows of D = 64 stay in the
cache of a core, where 41,000 items do not fit. The order of each sum is fixed (an item's by the place in the batch, a
user's by item), so that the number of threads changes no digit.

Measured for B = 1024, N = 800, D = 64, 41,000 items, float32, two threads, on a machine whose cache others use too:
27 ms, and 40 where scores and gradients of users go through the pairs and fetch items from all over their table.
benchmarks/scores.py has the other ways that lost.
"""

import numpy as np
import torch
from numba import njit, prange

from distrec.core.buffer_pool import empty
from distrec.kernels.numba.intrinsics import dot
from distrec.kernels.numba.launch import loop, run
from distrec.kernels.numba.weighted_sums import add_to_rows, add_weighted
from distrec.kernels.shapes import check_shapes

BLOCKS = 64  # of items with about the same number of places, so that popular items do not keep one thread busy
SLICE = 16  # columns of the users that a thread has for itself, at least


class PairScores(torch.autograd.Function):
    """Implements `scores.pair_scores` for float32 and float64 rows."""

    @staticmethod
    def forward(ctx, users_UD, items_VD, user_index_B, item_index_BN):
        check_shapes(users_UD, items_VD, user_index_B, item_index_BN)
        users_UD, items_VD = users_UD.contiguous(), items_VD.contiguous()
        user_index_B, item_index_BN = user_index_B.contiguous(), item_index_BN.contiguous()
        # The items' places are not read again, but kept: autograd then refuses a gradient if they were changed.
        ctx.save_for_backward(users_UD, items_VD, user_index_B, item_index_BN)
        start_CV = np.empty((torch.get_num_threads(), len(items_VD) + 1), np.int32)
        place_P = empty([item_index_BN.numel()], users_UD, torch.int32).numpy()
        run(GROUP, item_index_BN.numpy(), start_CV, place_P)
        ctx.grouped = start_CV, place_P
        scores_BN = empty(item_index_BN.shape, users_UD)
        run(SCORES, *_arrays(users_UD, items_VD, user_index_B), start_CV, place_P, scores_BN.numpy())
        return scores_BN

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_BN):
        users_UD, items_VD, user_index_B, _ = ctx.saved_tensors
        start_CV, place_P = ctx.grouped
        start_V = (start_CV - start_CV[:, :1]).sum(0)
        grad_BN, users_grad, items_grad = grad_BN.contiguous(), None, None
        user_P, grad_P = (empty([len(place_P)], grad_BN, dtype).numpy() for dtype in (torch.int32, grad_BN.dtype))
        run(BY_ITEM, *_arrays(user_index_B, grad_BN), start_CV, start_V, place_P, user_P, grad_P)
        if ctx.needs_input_grad[0]:
            users_grad = torch.zeros_like(users_UD)
            slices = max(1, min(torch.get_num_threads(), users_UD.shape[1] // SLICE))
            run(USERS_GRAD, *_arrays(items_VD), start_V, user_P, grad_P, slices, users_grad.numpy())
        if ctx.needs_input_grad[1]:
            items_grad = empty(items_VD.shape, items_VD)
            run(ITEMS_GRAD, *_arrays(users_UD), start_V, user_P, grad_P, items_grad.numpy())
        return users_grad, items_grad, None, None


def _arrays(*tensors: torch.Tensor) -> list[np.ndarray]:
    return [tensor.detach().numpy() for tensor in tensors]


@njit
def _check(at, rows):
    """Compiled code does not check indices: a wrong one would read, and write, others' memory."""
    if len(at) > 0 and (at.min() < 0 or at.max() >= rows):
        raise IndexError("a place outside the rows of the batch")


def _group(item_index_BN, start_CV, place_P):
    """Places by chunk of the pairs and by item, in order within an item, and where those of each item start.

    A thread has a chunk, with the places in it and their scores, for itself: two that write by turns to one cache line
    wait for each other each time, which made two threads as slow as one.
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
                place_P[next_V[item_index_BN[b, k]]] = b * n + k
                next_V[item_index_BN[b, k]] += 1


@njit
def _first_row(start_V, block):
    """Of a block of rows."""
    if block == BLOCKS:
        return len(start_V) - 1
    return np.searchsorted(start_V, start_V[-1] * block // BLOCKS)


@njit
def _pair(place, share):
    """The pair of a place, without a division; `share` is 1 / N. Half a place keeps it clear of rounding."""
    return np.int64((place + 0.5) * share)


def _scores(users_UD, items_VD, user_index_B, start_CV, place_P, scores_BN):
    _check(user_index_B, len(users_UD))
    scores_P, share = scores_BN.ravel(), 1.0 / scores_BN.shape[1]
    for chunk in prange(len(start_CV)):
        for v in range(len(items_VD)):
            for p in place_P[start_CV[chunk, v] : start_CV[chunk, v + 1]]:
                scores_P[p] = dot(users_UD, user_index_B[_pair(p, share)], items_VD, v)


def _by_item(user_index_B, grad_BN, start_CV, start_V, place_P, user_P, grad_P):
    """User and gradient of each place, by item: the sums then read one after another."""
    from_P, share = grad_BN.ravel(), 1.0 / grad_BN.shape[1]
    for block in prange(BLOCKS):
        for v in range(_first_row(start_V, block), _first_row(start_V, block + 1)):
            k = start_V[v]
            for chunk in range(len(start_CV)):
                for p in place_P[start_CV[chunk, v] : start_CV[chunk, v + 1]]:
                    user_P[k], grad_P[k] = user_index_B[_pair(p, share)], from_P[p]
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


GROUP, SCORES, BY_ITEM = loop(_group), loop(_scores), loop(_by_item)
USERS_GRAD, ITEMS_GRAD = loop(_users_grad), loop(_items_grad)
