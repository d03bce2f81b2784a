"""Marks that run a test for each compiled implementation of pair scores available here."""

import pytest
import torch

from distrec.models.scoring import pair_scores
from tests.kernels.gpu import CUDA, interpreted, on_gpu, running


def triton_pair_scores(users, items, user_index, item_index):
    """Run the Triton programs on a GPU, or in the interpreter on the CPU. Results are returned to the CPU."""
    from distrec.kernels.triton.pair_scores import PairScores  # here, as triton may be missing

    tensors = [tensor.cuda() if CUDA else tensor for tensor in (users, items, user_index, item_index)]
    return PairScores.apply(*tensors).to(users.device)


def triton_in_order(users, items, user_index, item_index):
    """Run them with gradients that are added in a fixed order."""
    torch.use_deterministic_algorithms(True)
    try:
        return triton_pair_scores(users, items, user_index, item_index)
    finally:
        torch.use_deterministic_algorithms(False)


def _implementations(triton_needs):
    triton = [
        pytest.param(triton_pair_scores, id="triton", marks=triton_needs),
        pytest.param(triton_in_order, id="triton_in_order", marks=triton_needs),
    ]
    return pytest.mark.parametrize("pair_scores", [pytest.param(pair_scores, id="numba"), *triton])


each_implementation = _implementations(running)
each_on_cpu = _implementations(interpreted)
each_in_parallel = _implementations(on_gpu)  # the interpreter runs one program after the other
