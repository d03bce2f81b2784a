"""Marks that run a test for each compiled implementation of pair scores available here."""

import pytest

from distrec.models.scoring import pair_scores
from tests.kernels.gpu import CUDA, interpreted, on_gpu, running


def triton_pair_scores(users, items, user_index, item_index):
    """Run the Triton programs on a GPU, or in the interpreter on the CPU. Results are returned to the CPU."""
    from distrec.kernels.triton.pair_scores import PairScores  # here, as triton may be missing

    tensors = [tensor.cuda() if CUDA else tensor for tensor in (users, items, user_index, item_index)]
    return PairScores.apply(*tensors).to(users.device)


def _implementations(triton_needs):
    numba = pytest.param(pair_scores, id="numba")
    return pytest.mark.parametrize(
        "pair_scores", [numba, pytest.param(triton_pair_scores, id="triton", marks=triton_needs)]
    )


each_implementation = _implementations(running)
each_on_cpu = _implementations(interpreted)
each_in_parallel = _implementations(on_gpu)  # the interpreter runs one program after the other
