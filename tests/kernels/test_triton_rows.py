"""Normalisation and log-sum-exp in Triton equal torch's, forward and backward, in the interpreter or on a GPU."""

import pytest
import torch

from distrec.losses.row_sums import log_sum_exp
from distrec.models.scoring import EPSILON, l2_normalize_reference
from tests.kernels.gpu import CUDA, compiling, python, running

DEVICE = "cuda" if CUDA else "cpu"


@compiling
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
