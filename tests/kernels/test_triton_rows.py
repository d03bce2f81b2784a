"""Normalisation, log-sum-exp and the softmax of pairs in Triton equal torch's, forward and backward.

In the interpreter, or on a GPU."""

import pytest
import torch

from distrec.losses.row_sums import log_sum_exp
from distrec.models.scoring import EPSILON, l2_normalize_reference
from tests.kernels.gpu import CUDA, compiling, python, running

DEVICE = "cuda" if CUDA else "cpu"


@compiling
@pytest.mark.long
def test_every_program_compiles_for_a_gpu(tmp_path):
    done = python("-m", "tests.kernels.compile_device_steps", "90", TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stdout


def with_gradient(function, values, grad, device):
    """Return the result and the gradient of the values."""
    values = values.to(device).detach().requires_grad_()
    result = function(values)
    result.backward(grad.to(device))
    return result.detach().cpu(), values.grad.cpu()


@running
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(70, 6), (3, 64), (1, 300), (0, 4)])
def test_normalisation(shape, dtype):
    from distrec.kernels.triton.rows import L2Normalize

    rows, grad = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    rows[:1] *= 1e-13  # shorter than the norm is clamped to
    found = with_gradient(lambda x: L2Normalize.apply(x, EPSILON), rows, grad, DEVICE)
    expected = with_gradient(l2_normalize_reference, rows.double(), grad.double(), "cpu")
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b.to(dtype), rtol=1e-5, atol=1e-6)


@running
@pytest.mark.parametrize("shape", [(5, 3), (2, 2500), (4, 1), (0, 3)])
def test_log_sum_exp(shape):
    from distrec.kernels.triton.rows import LogSumExp

    scores, grad = torch.randn(shape).mul_(5), torch.rand(shape[0])
    scores[:1], grad[:1] = -torch.inf, 0.0  # a pair whose negatives are all masked
    scores[1:, :1] = -torch.inf
    if shape[1] == 1:
        scores[1:] = 1.0
    # As a view of wider rows, as the scores of negatives are.
    found = with_gradient(lambda x: LogSumExp.apply(torch.cat([x[:, :1], x], 1)[:, 1:], 0.1), scores, grad, DEVICE)
    expected = with_gradient(lambda x: log_sum_exp(x, 0.1), scores.double(), grad.double(), "cpu")
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-5, atol=1e-6)


@running
@pytest.mark.parametrize("shape", [(5, 4, 9, 8, 70), (3, 3, 2, 6, 1), (2, 9, 5, 100, 20)])
def test_softmax_of_pairs(shape):
    """Scores of positives and log-sum-exp of negatives, with the gradients of both."""
    from distrec.kernels.triton.pair_softmax import PairSoftmax

    users, items, pairs, dim, n = shape
    values = torch.randn(users + items, dim)
    user_B, item_B = torch.randint(users, (pairs,)).int(), torch.randint(items, (pairs,)).int()
    negative_BN, grad = torch.randint(items, (pairs, n)).int(), torch.randn(2, pairs)

    def found(x):
        index = (t.to(x.device) for t in (user_B, item_B, negative_BN))
        return torch.stack(PairSoftmax.apply(x[:users], x[users:], *index, 0.1))

    def expected(x):
        user, item = x[:users][user_B.long()], x[users:]
        scores = torch.einsum("bd,bnd->bn", user, item[negative_BN.long()])
        return torch.stack([(user * item[item_B.long()]).sum(1), log_sum_exp(scores, 0.1)])

    for a, b in zip(
        with_gradient(found, values, grad, DEVICE),
        with_gradient(expected, values.double(), grad.double(), "cpu"),
        strict=True,
    ):
        torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-4)
