"""Compiled pair scores and L2 normalisation, with gradients, against plain torch in float64, at extremes too."""

import pytest
import torch

from distrec.models.scoring import (
    TorchL2Normalize,
    l2_normalize,
    l2_normalize_reference,
    pair_scores,
    pair_scores_reference,
)
from tests.kernels.implementations import (
    each_implementation,
    each_in_parallel,
    each_on_cpu,
    triton_in_order,
    triton_pair_scores,
)

SHAPES = {  # B, N, D, U, V
    "usual": (7, 5, 24, 4, 9),
    "a single pair": (1, 1, 16, 1, 1),
    "no pairs": (0, 3, 8, 2, 3),
    "no negatives": (4, 0, 8, 2, 3),
    "nothing at all": (0, 0, 4, 0, 0),
    "one item, repeated": (3, 40, 17, 2, 1),
    "shorter than a vector": (9, 3, 3, 5, 6),
    "no dimension": (3, 2, 0, 2, 2),
    "rows of several slices": (3, 4, 300, 2, 5),
    "more rows than indices": (2, 3, 65, 300, 500),
    "many": (150, 31, 67, 60, 200),
}

each_normalize = pytest.mark.parametrize("normalize", [l2_normalize, TorchL2Normalize.apply], ids=["compiled", "torch"])


def case(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, index: torch.dtype = torch.int32):
    torch.manual_seed(0)
    b, n, d, users, items = shape
    rows = [torch.randn(count, d, dtype=dtype) for count in (users, items)]
    return *rows, torch.randint(max(1, users), (b,), dtype=index), torch.randint(max(1, items), (b, n), dtype=index)


def scored(function, users, items, user_index, item_index, grad):
    """Return the scores and both gradients."""
    users, items = users.clone().requires_grad_(), items.clone().requires_grad_()
    scores = function(users, items, user_index, item_index)
    scores.backward(grad)
    return scores.detach(), users.grad, items.grad


@each_implementation
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_equals_the_reference(pair_scores, shape, index):
    users, items, user_index, item_index = case(shape, index=index)
    grad = torch.randn(item_index.shape, dtype=torch.float64)
    expected = scored(pair_scores_reference, users, items, user_index, item_index, grad)
    for found, wanted in zip(scored(pair_scores, users, items, user_index, item_index, grad), expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)
    narrow = scored(pair_scores, users.float(), items.float(), user_index, item_index, grad.float())
    for found, wanted in zip(narrow, expected, strict=True):
        assert found.dtype == torch.float32
        # Sums of about 100 products of magnitude 1, each with half a unit in the last place of rounding error.
        assert torch.allclose(found.double(), wanted, rtol=1e-5, atol=1e-4)


@each_implementation
def test_gradcheck(pair_scores):
    users, items, user_index, item_index = case((4, 6, 5, 3, 2))  # two items, so that every pair has repeated items
    users.requires_grad_(), items.requires_grad_()
    assert torch.autograd.gradcheck(lambda u, i: pair_scores(u, i, user_index, item_index), (users, items))
    assert torch.autograd.gradcheck(lambda u: pair_scores(u, items.detach(), user_index, item_index), (users,))
    assert torch.autograd.gradcheck(lambda i: pair_scores(users.detach(), i, user_index, item_index), (items,))


@each_implementation
def test_non_contiguous_input(pair_scores):
    users, items, user_index, item_index = case((6, 4, 10, 5, 8))
    expected = pair_scores_reference(users, items, user_index, item_index)
    found = pair_scores(
        users.T.contiguous().T,
        torch.cat([items, items], 1)[:, :10],
        torch.stack([user_index, user_index], 1)[:, 0],
        item_index.T.contiguous().T,
    )
    assert torch.allclose(found, expected)
    wanted = scored(pair_scores_reference, users, items, user_index, item_index, torch.ones_like(expected))
    for grad in (torch.ones(()).double().expand_as(expected), torch.ones_like(expected.T).T):
        for a, b in zip(scored(pair_scores, users, items, user_index, item_index, grad), wanted, strict=True):
            assert torch.allclose(a, b)


@each_implementation
def test_gradients_of_zero(pair_scores):
    users, items, user_index, item_index = case((20, 8, 6, 30, 40))
    grad = torch.zeros(item_index.shape, dtype=torch.float64)
    for found in scored(pair_scores, users, items, user_index, item_index, grad)[1:]:
        assert torch.equal(found, torch.zeros_like(found))


@each_in_parallel
@pytest.mark.parametrize("shape", [SHAPES["many"], (64, 64, 32, 50, 3), (300, 1, 20, 100, 200)])
@pytest.mark.long
def test_bit_equal_over_threads_and_repetitions(pair_scores, shape):
    users, items, user_index, item_index = case(shape, torch.float32)
    grad, threads = torch.randn(item_index.shape), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            found.append(scored(pair_scores, users, items, user_index, item_index, grad))
    finally:
        torch.set_num_threads(threads)
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


@each_implementation
def test_order_of_summation(pair_scores):
    """Item gradients are summed in batch order; user gradients in batch order on GPUs, by item on the CPU."""
    if pair_scores is triton_pair_scores:
        pytest.skip("atomics add in any order")
    users, items, user_index, item_index = case((50, 20, 120, 10, 12), torch.float32)
    grad = torch.randn(item_index.shape)
    _, users_grad, items_grad = scored(pair_scores, users, items, user_index, item_index, grad)
    for_users, for_items = torch.zeros_like(users), torch.zeros_like(items)
    entries = [(b, k, v) for b, row in enumerate(item_index.tolist()) for k, v in enumerate(row)]
    for b, k, v in entries:
        for_items[v] += grad[b, k] * users[user_index[b]]
    for b, k, v in entries if pair_scores is triton_in_order else sorted(entries, key=lambda entry: entry[2]):
        for_users[user_index[b]] += grad[b, k] * items[v]
    assert torch.equal(users_grad, for_users) and torch.equal(items_grad, for_items)


wrong_indices = pytest.mark.parametrize(
    ("where", "wrong"), [(where, wrong) for where in ("user", "item") for wrong in (-1, 5, 2**31 - 1)]
)


@each_on_cpu
@wrong_indices
def test_index_outside_the_rows(pair_scores, where, wrong):
    users, items, user_index, item_index = case((4, 3, 8, 5, 5))
    (user_index if where == "user" else item_index).view(-1)[2] = wrong
    with pytest.raises(IndexError, match="outside the rows"):
        pair_scores(users, items, user_index, item_index)
    if where == "user":
        with pytest.raises(IndexError, match="outside the rows"):
            pair_scores(users, items, user_index, item_index[:, :0])


@each_on_cpu
def test_indices_changed_before_the_backward_pass_are_an_error(pair_scores):
    users, items, user_index, item_index = case((4, 3, 8, 5, 5))
    scores = pair_scores(users.requires_grad_(), items, user_index, item_index)
    item_index[0, 0] = 10**6
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        scores.sum().backward()


@each_implementation
@pytest.mark.parametrize("users,items", [((2, 3), (2, 4)), ((2, 3), (2,))])
def test_shapes_that_do_not_match(pair_scores, users, items):
    index = torch.zeros(2, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match="shape"):
        pair_scores(torch.ones(users), torch.ones(items), index[:, 0], index)


def test_dtypes_without_a_kernel():
    users, items, user_index, item_index = case((4, 3, 8, 5, 5))
    found = pair_scores(users.bfloat16(), items.bfloat16(), user_index, item_index)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.double(), pair_scores(users, items, user_index, item_index), atol=0.2)


@pytest.mark.parametrize("shape", [(7, 24), (1, 1), (0, 5), (4, 0), (300, 67)])
@each_normalize
def test_normalize_equals_the_reference(normalize, shape):
    torch.manual_seed(0)
    rows, grad = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    found, wanted = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    narrow = rows.float().requires_grad_()
    result, expected, single = normalize(found), l2_normalize_reference(wanted), normalize(narrow)
    result.backward(grad), expected.backward(grad), single.backward(grad.float())
    assert torch.allclose(result, expected, rtol=1e-13) and torch.allclose(found.grad, wanted.grad, rtol=1e-11)
    assert torch.allclose(single.double(), expected, rtol=1e-5)
    assert torch.allclose(narrow.grad.double(), wanted.grad, rtol=1e-5, atol=1e-5)


def test_normalize_is_bit_equal_over_threads():
    rows, grad, found, threads = torch.randn(300, 67), torch.randn(300, 67), [], torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            leaf = rows.clone().requires_grad_()
            result = l2_normalize(leaf)
            result.backward(grad)
            found.append((result.detach(), leaf.grad))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@each_normalize
def test_normalize_at_extremes(normalize):
    rows = torch.tensor([[0.0, 0.0], [1e-30, 0.0], [3e15, 4e15], [1e-12, 0.0]], dtype=torch.float64)
    found, wanted = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    result, expected = normalize(found), l2_normalize_reference(wanted)
    assert torch.allclose(result, expected)
    result[[0, 1, 2]].sum().backward(), expected[[0, 1, 2]].sum().backward()
    assert torch.allclose(found.grad, wanted.grad)


@each_normalize
def test_gradcheck_of_normalize(normalize):
    torch.manual_seed(0)
    rows = torch.randn(6, 19, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(normalize, (rows,))
    assert torch.autograd.gradcheck(lambda r: normalize(r.T), (torch.randn(5, 6).double().requires_grad_(),))
