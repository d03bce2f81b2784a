"""Uniformity of DirectAU and MAWU in tiles against the dense matrix of a batch, and the memory that it takes.

U: distinct rows.
"""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distrec.losses import LossInputs, alignment, losses
from distrec.losses.base import GlobalBatch
from distrec.sharding.collectives import Exchange
from distrec.sharding.differentiable import StepExchange

U, D = 9, 4
COUNTS = torch.tensor([1, 2, 1, 3, 1, 1, 1, 4, 1], dtype=torch.float64)


def rows_of_unit_length(*shape, dtype=torch.float64):
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=dtype), dim=-1)


def dense(rows_BD, authors):
    """Return the uniformity by the matrix of all pairs of rows."""
    n, squared_BB = len(rows_BD), (rows_BD[:, None] - rows_BD).square().sum(2)
    if authors:  # as the public codes: the diagonal and the upper triangle of the cosines are 0
        cosine_BB = torch.tril(rows_BD @ rows_BD.T, -1)
        return torch.exp(-2 * (2 - 2 * cosine_BB)).mean().log()
    below = torch.ones(n, n).tril(-1).bool()
    return torch.exp(-2 * squared_BB)[below].mean().log()


def uniformity(rows_UD, counts_U, authors):
    """Return the uniformity of counted rows as one worker computes it."""
    step = LossInputs(exchange=StepExchange(Exchange(torch.device("cpu"))), workers=1)
    return alignment.log_uniformity(step, rows_UD, counts_U, slice(0, len(rows_UD)), duplicates=True, diagonal=authors)


@pytest.mark.parametrize("authors", [False, True])
@pytest.mark.parametrize("tile", [1, 3 * U, 2**20])
def test_uniformity_is_that_of_the_dense_matrix(authors, tile, monkeypatch):
    """Counted rows are repeated rows; tiles of one, of three and of all rows."""
    monkeypatch.setattr(alignment, "_TILE", tile)
    rows_UD, results = torch.randn(U, D, dtype=torch.float64), []
    for counted in (True, False):
        leaf = rows_UD.clone().requires_grad_()
        unit_UD = torch.nn.functional.normalize(leaf, dim=1)
        if counted:
            result = uniformity(unit_UD, COUNTS, authors)
        else:
            result = dense(unit_UD.repeat_interleave(COUNTS.long(), 0), authors)
        results.append((result.detach(), torch.autograd.grad(result, leaf)[0]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)


def test_the_gradient_of_uniformity_is_a_weighted_mean_of_differences():
    """-4 sum_b p_ab (x_a - x_b), p_ab the share of the pair in the sum, but for a part along the row."""
    rows_UD = rows_of_unit_length(U, D)
    leaf = rows_UD.clone().requires_grad_()
    uniformity(leaf, torch.ones(U, dtype=torch.float64), False).backward()
    similar_UU = torch.exp(4 * rows_UD @ rows_UD.T - 4).fill_diagonal_(0)
    share_UU = similar_UU / (similar_UU.sum() / 2)
    expected_UD = -4 * (share_UU.sum(1, keepdim=True) * rows_UD - share_UU @ rows_UD)
    found_UD, expected_UD = (g - (g * rows_UD).sum(1, keepdim=True) * rows_UD for g in (leaf.grad, expected_UD))
    torch.testing.assert_close(found_UD, expected_UD, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["directau", "mawu"])
def test_one_pair_or_one_row_has_no_uniformity(name):
    """A batch of one pair; several pairs of one user, whose uniformity is 0, with several items."""
    for rows, users in (("unique", 1), ("positions", 1), ("unique", 3)):
        loss, step, leaf = batch_of(name, torch.zeros(users, dtype=torch.int64), torch.arange(users), rows=rows)
        of_users, of_items = loss.uniformities(step)
        assert of_users == 0 and (of_items == 0) == (users == 1)
        assert not torch.autograd.grad(of_users, leaf)[0].any()
        assert loss.share(step).isfinite()


def batch_of(name, user_B, item_B, dtype=torch.float64, **options):
    """Return a loss, the inputs of a batch of pairs of these users and items, and the rows that have gradients."""
    loss = losses[name](**options)
    leaf = rows_of_unit_length(int(user_B.max()) + 1, D, dtype=dtype).requires_grad_()
    users_BD, items_BD = leaf[user_B], rows_of_unit_length(int(item_B.max()) + 1, D, dtype=dtype)[item_B]
    step = LossInputs(
        users_BD=users_BD,
        positives_BD=items_BD,
        batch=GlobalBatch(users_BD, items_BD, user_B, item_B, slice(0, len(user_B))),
        tables={name: torch.rand(len(user_B), 1, dtype=dtype) for name in ("user_margins", "item_margins")},
        exchange=StepExchange(Exchange(torch.device("cpu"))),
        pairs=len(user_B),
        workers=1,
        rank=0,
    )
    return loss, step, leaf


def test_margins_start_near_and_stay_below_a_half():
    """MAWU: 1 - sigmoid(m_u + m_i) lies in [1 - sigmoid(2), 1/2] for margins in [0, 1], and beyond at the bounds."""
    for margin, expected in ((-3.0, 0.5), (0.0, 0.5), (1.0, 1 - 1 / (1 + math.exp(-2))), (7.0, 0.11920292)):
        loss, step, _ = batch_of("mawu", torch.tensor([0]), torch.tensor([0]))
        step.positives_BD = step.users_BD  # an angle of 0
        step.tables = {name: torch.full((1, 1), margin, dtype=torch.float64) for name in step.tables}
        assert math.acos(-loss.share(step).item()) == pytest.approx(expected, abs=1e-3)


class LargestTensor(TorchDispatchMode):
    """Measures the largest storage that an operation returns, in bytes."""

    largest = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        results = function(*arguments, **(named or {}))
        for result in results if isinstance(results, tuple | list) else [results]:
            if isinstance(result, torch.Tensor):
                self.largest = max(self.largest, result.untyped_storage().nbytes())
        return results


def test_memory_does_not_grow_with_the_square_of_the_batch():
    """Of 16,384 pairs the matrix of all users' similarities would be 1 GiB, the share of one of 16 workers 64 MiB."""
    pairs = 16_384
    loss, step, _ = batch_of("directau", torch.arange(pairs), torch.arange(pairs) % 64, torch.float32)
    step.workers = 16  # which saves time
    with LargestTensor() as measured:
        loss.share(step).backward()
    assert measured.largest <= 2**25, measured.largest
