"""Scores of the pairs of a batch from representations of its unique rows."""

from typing import Any

import torch
from torch.nn.functional import normalize

from distrec.kernels.dispatch import has_gpu_kernel, has_kernel

LEAST = 1e-12  # a row shorter than this is divided by it


def l2_normalize(rows_UD: torch.Tensor) -> torch.Tensor:
    """The rows scaled to length 1, for scores that are cosines."""
    if has_kernel(rows_UD):
        from distrec.kernels.numba.normalize import (
            L2Normalize,  # here, as importing numba takes a good part of a second
        )

        return L2Normalize.apply(rows_UD, LEAST)
    return TorchL2Normalize.apply(rows_UD)


def l2_normalize_reference(rows_UD: torch.Tensor) -> torch.Tensor:
    """`unit_rows` as torch has it, for any device and dtype."""
    return normalize(rows_UD, dim=1, eps=LEAST)


class TorchL2Normalize(torch.autograd.Function):
    """`unit_rows` for any device and dtype, with fewer operations than what autograd makes of torch's `normalize`: on a
    GPU the host takes longer to ask for one than the device to do it."""

    @staticmethod
    def forward(ctx: Any, rows_UD: torch.Tensor) -> torch.Tensor:
        length_U1 = torch.linalg.vector_norm(rows_UD, dim=1, keepdim=True).clamp_min_(LEAST)
        unit_UD = rows_UD / length_U1
        ctx.save_for_backward(unit_UD, length_U1)
        return unit_UD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_UD: torch.Tensor) -> torch.Tensor:
        # What lies along the row would only change its length. A row that is too short is divided by a constant.
        unit_UD, length_U1 = ctx.saved_tensors
        along_U1 = (unit_UD * grad_UD).sum(1, keepdim=True).masked_fill_(length_U1 <= LEAST, 0.0)
        return torch.addcmul(grad_UD, unit_UD, along_U1, value=-1).div_(length_U1)


def pair_scores(
    users_UD: torch.Tensor, items_UD: torch.Tensor, user_index_B: torch.Tensor, item_index_BN: torch.Tensor
) -> torch.Tensor:
    """Scores of each user with its own N items, (B, N). A place outside the rows is an IndexError."""
    if has_kernel(users_UD):
        from distrec.kernels.numba.pair_scores import PairScores

        return PairScores.apply(users_UD, items_UD, user_index_B, item_index_BN)
    if has_gpu_kernel(users_UD):
        from distrec.kernels.triton.pair_scores import PairScores

        return PairScores.apply(users_UD, items_UD, user_index_B, item_index_BN)
    return pair_scores_reference(users_UD, items_UD, user_index_B, item_index_BN)


def pair_scores_reference(
    users_UD: torch.Tensor, items_UD: torch.Tensor, user_index_B: torch.Tensor, item_index_BN: torch.Tensor
) -> torch.Tensor:
    """`pair_scores` in plain torch, for any device and dtype; builds the (B, N, D) items."""
    return torch.einsum("bd,bnd->bn", users_UD[user_index_B], items_UD[item_index_BN])


def shared_scores(
    users_UD: torch.Tensor,
    items_UD: torch.Tensor,
    user_index_B: torch.Tensor,
    positive_index_B: torch.Tensor,
    negative_index_N: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of each user with its positive, (B,), and with the same N items, (B, N): one matrix product."""
    # As int64: what torch adds gradients up with takes three times as long on the CPU by places of 32 bits.
    users_BD = users_UD.index_select(0, user_index_B.long())
    item_index = torch.cat([positive_index_B, negative_index_N]).long()
    positives_BD, negatives_ND = items_UD.index_select(0, item_index).split(
        [len(positive_index_B), len(negative_index_N)]
    )
    return (users_BD * positives_BD).sum(1), users_BD @ negatives_ND.T
