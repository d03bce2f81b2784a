"""Scores of the pairs of a batch from representations of its unique rows."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from distrec.kernels.dispatch import has_gpu_kernel, has_kernel

EPSILON = 1e-12
"""Norms are clamped to this from below."""


def l2_normalize(rows_UD: Tensor) -> Tensor:
    """Return the rows divided by their L2 norms, so that scores are cosines."""
    if has_kernel(rows_UD):
        from distrec.kernels.numba.normalize import L2Normalize  # importing numba takes 0.5 s

        return L2Normalize.apply(rows_UD, EPSILON)  # type: ignore[no-untyped-call,no-any-return]
    if has_gpu_kernel(rows_UD):
        from distrec.kernels.triton.rows import L2Normalize as OnGPU

        return OnGPU.apply(rows_UD, EPSILON)  # type: ignore[no-untyped-call,no-any-return]
    return TorchL2Normalize.apply(rows_UD)  # type: ignore[no-untyped-call,no-any-return]


def l2_normalize_reference(rows_UD: Tensor) -> Tensor:
    """`l2_normalize` by torch, for any device and dtype."""
    return normalize(rows_UD, dim=1, eps=EPSILON)


class TorchL2Normalize(torch.autograd.Function):
    """`l2_normalize` for any device and dtype, in fewer operations than autograd needs for torch's `normalize`: on a
    GPU the host takes longer to launch an operation than the device to run it."""

    @staticmethod
    def forward(ctx: Any, rows_UD: Tensor) -> Tensor:
        norm_U1: Tensor = torch.linalg.vector_norm(rows_UD, dim=1, keepdim=True).clamp_min_(EPSILON)
        normalized_UD = rows_UD / norm_U1
        ctx.save_for_backward(normalized_UD, norm_U1)
        return normalized_UD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_UD: Tensor) -> Tensor:
        # Remove the component along the row, which only changes its norm. A clamped norm is a constant divisor.
        normalized_UD, norm_U1 = ctx.saved_tensors
        along_U1 = (normalized_UD * grad_UD).sum(1, keepdim=True).masked_fill_(norm_U1 <= EPSILON, 0.0)
        return torch.addcmul(grad_UD, normalized_UD, along_U1, value=-1).div_(norm_U1)


def pair_scores(users_UD: Tensor, items_UD: Tensor, user_index_B: Tensor, item_index_BN: Tensor) -> Tensor:
    """Return the dot products of each pair's user with its own N items, (B, N).

    Raises:
        IndexError: an index lies outside the rows (on a GPU, reported at the next synchronisation).
    """
    if has_kernel(users_UD):
        from distrec.kernels.numba.pair_scores import PairScores
    elif has_gpu_kernel(users_UD):
        from distrec.kernels.triton.pair_scores import PairScores  # type: ignore[assignment]
    else:
        return pair_scores_reference(users_UD, items_UD, user_index_B, item_index_BN)
    return PairScores.apply(users_UD, items_UD, user_index_B, item_index_BN)  # type: ignore[no-untyped-call,no-any-return]


def pair_scores_reference(users_UD: Tensor, items_UD: Tensor, user_index_B: Tensor, item_index_BN: Tensor) -> Tensor:
    """`pair_scores` in plain torch, for any device and dtype; materialises the item rows, (B, N, D)."""
    return torch.einsum("bd,bnd->bn", users_UD[user_index_B], items_UD[item_index_BN])


def shared_scores(
    users_UD: Tensor, items_UD: Tensor, user_index_B: Tensor, positive_index_B: Tensor, negative_index_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Return scores of each user with its positive, (B,), and with N shared items, (B, N): one matrix product."""
    # int64 indices: the backward pass of index_select takes three times as long on the CPU with int32.
    users_BD = users_UD.index_select(0, user_index_B.long())
    item_index = torch.cat([positive_index_B, negative_index_N]).long()
    positives_BD, negatives_ND = torch.split(
        items_UD.index_select(0, item_index), [len(positive_index_B), len(negative_index_N)]
    )
    return (users_BD * positives_BD).sum(1), users_BD @ negatives_ND.T
