"""The compiled ways to score pairs, those of them that can run here, to be held to the same tests."""

import pytest

from distrec.models.scoring import pair_scores
from tests.kernels.gpu import CUDA, interpreted, on_gpu, running


def by_triton(users, items, user_index, item_index):
    """On a GPU, or by the interpreter where the tensors are; results come back."""
    from distrec.kernels.triton.pair_scores import PairScores  # here, as triton may be missing

    tensors = [tensor.cuda() if CUDA else tensor for tensor in (users, items, user_index, item_index)]
    return PairScores.apply(*tensors).to(users.device)


def _ways(needs):
    by_numba = pytest.param(pair_scores, id="numba")
    return pytest.mark.parametrize("pair_scores", [by_numba, pytest.param(by_triton, id="triton", marks=needs)])


each_way = _ways(running)
each_way_on_cpu = _ways(interpreted)
each_way_in_parallel = _ways(on_gpu)  # the interpreter runs one program after the other
