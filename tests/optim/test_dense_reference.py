"""Dense reference against torch's own optimizers and against formulas evaluated by hand."""

import pytest
import torch

from distrec.optim.config import OptimConfig, ScheduleConfig
from distrec.optim.dense_reference import DenseReference
from distrec.optim.schedule import learning_rate
from tests.optim.cases import DIM, batches, config

V, STEPS = 6, 40
SCHEDULE = ScheduleConfig(name="cosine", warmup_steps=5, final_fraction=0.1)


def rows() -> torch.Tensor:
    return torch.randn(V, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def compare(chosen: OptimConfig, make, sparse: bool, every_row: bool = False) -> None:
    """Compare the reference with a torch optimizer on the same gradients; `make` builds it from its parameters."""
    reference = DenseReference(rows(), chosen, STEPS)
    weight = rows().requires_grad_()
    rival = make([weight])
    for t, (rows_U, grad_UD) in enumerate(batches(3, STEPS, V), start=1):
        if every_row:
            rows_U = torch.arange(V)
            grad_UD = torch.randn(V, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(t))
        reference.step(rows_U, grad_UD)
        rival.param_groups[0]["lr"] = learning_rate(chosen.schedule, chosen.lr, t, STEPS)
        grad = torch.sparse_coo_tensor(rows_U[None], grad_UD, (V, DIM), check_invariants=True).coalesce()
        weight.grad = grad if sparse else grad.to_dense()
        rival.step()
    torch.testing.assert_close(reference.rows_VD, weight.detach(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("coupling", ["l2", "decoupled"])
def test_sgd_with_full_decay_is_torch_sgd_with_weight_decay(coupling):
    """With SGD both couplings are the same."""
    chosen = config("sgd", "full", coupling, shrink=0.02, schedule=SCHEDULE)
    compare(chosen, lambda p: torch.optim.SGD(p, lr=1.0, weight_decay=chosen.decay.strength), sparse=False)


def test_momentum_is_torch_sgd_with_momentum():
    for scope, coupling in (("none", "l2"), ("full", "l2")):
        chosen = config("momentum", scope, coupling, shrink=0.02, schedule=SCHEDULE, momentum=0.8)
        rate = chosen.decay.strength
        compare(chosen, lambda p, r=rate: torch.optim.SGD(p, lr=1.0, momentum=0.8, weight_decay=r), sparse=False)


@pytest.mark.parametrize(
    ("scope", "coupling", "rival"),
    [("none", "l2", torch.optim.Adam), ("full", "l2", torch.optim.Adam), ("full", "decoupled", torch.optim.AdamW)],
)
def test_adam_is_torch_adam(scope, coupling, rival):
    chosen = config("adam", scope, coupling, shrink=0.02, schedule=SCHEDULE, beta1=0.8, beta2=0.99, eps=1e-3)
    rate = chosen.decay.strength
    compare(chosen, lambda p: rival(p, betas=(0.8, 0.99), eps=1e-3, weight_decay=rate), sparse=False)


def test_lazy_adam_is_torch_sparse_adam():
    chosen = config("lazy_adam", schedule=SCHEDULE, beta1=0.8, beta2=0.99, eps=1e-3)
    compare(chosen, lambda p: torch.optim.SparseAdam(p, betas=(0.8, 0.99), eps=1e-3), sparse=True)


def test_adagrad_is_torch_adagrad():
    chosen = config("adagrad", schedule=SCHEDULE, eps=1e-3)
    compare(chosen, lambda p: torch.optim.Adagrad(p, eps=1e-3), sparse=True)
    compare(chosen, lambda p: torch.optim.Adagrad(p, eps=1e-3), sparse=False)


def test_adagrad_with_l2_is_torch_adagrad_with_weight_decay():
    chosen = config("adagrad", "in_batch", "l2", schedule=SCHEDULE)
    rate = chosen.decay.strength
    compare(chosen, lambda p: torch.optim.Adagrad(p, eps=1e-8, weight_decay=rate), sparse=False, every_row=True)


def test_rowwise_adagrad_by_hand():
    """One s a row: 0 + (9 + 16) / 2, then + (1 + 0) / 2."""
    chosen = config("rowwise_adagrad", lr=0.1, eps=1e-3)
    reference = DenseReference(torch.zeros(2, 2, dtype=torch.float64), chosen, STEPS)
    reference.step(torch.tensor([1]), torch.tensor([[3.0, -4.0]], dtype=torch.float64))
    reference.step(torch.tensor([1]), torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    first, second = 12.5**0.5 + 1e-3, 13**0.5 + 1e-3
    expected = torch.tensor([[0, 0], [-0.1 * (3 / first + 1 / second), 0.1 * 4 / first]], dtype=torch.float64)
    torch.testing.assert_close(reference.rows_VD, expected, rtol=1e-14, atol=0)


def test_rowwise_adagrad_on_rows_of_one_element_is_adagrad():
    found = []
    for rule in ("adagrad", "rowwise_adagrad"):
        reference = DenseReference(rows()[:, :1], config(rule, "full"), STEPS)
        for rows_U, grad_UD in batches(3, STEPS, V):
            reference.step(rows_U, grad_UD[:, :1])
        found.append(reference.rows_VD)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("scope", "coupling", "rival"),
    [
        ("full", "decoupled", torch.optim.AdamW),
        ("in_batch", "decoupled", torch.optim.AdamW),
        ("in_batch", "l2", torch.optim.Adam),
    ],
)
def test_lazy_adam_on_batches_of_every_row_is_torch_adam(scope, coupling, rival):
    """With a negligible epsilon, which torch.optim.Adam and SparseAdam add at different points."""
    chosen = config("lazy_adam", scope, coupling, schedule=SCHEDULE, eps=1e-30)
    rate = chosen.decay.strength
    compare(chosen, lambda p: rival(p, eps=1e-30, weight_decay=rate), sparse=False, every_row=True)


def test_decoupled_decay_by_hand():
    """w <- (1 - lr strength) w - lr m_hat / sqrt(v_hat); at t = 1 the last term is lr sign(g)."""
    chosen = config("lazy_adam", "full", lr=0.1, shrink=0.02, eps=1e-30)
    reference = DenseReference(torch.ones(2, 1, dtype=torch.float64), chosen, STEPS)
    reference.step(torch.tensor([0]), torch.tensor([[-3.0]], dtype=torch.float64))
    expected = torch.tensor([[0.98 + 0.1], [0.98]], dtype=torch.float64)
    torch.testing.assert_close(reference.rows_VD, expected, rtol=1e-14, atol=0)


def test_scope_in_batch_does_not_change_idle_rows():
    for coupling in ("decoupled", "l2"):
        reference = DenseReference(rows(), config("sgd", "in_batch", coupling), STEPS)
        reference.step(torch.tensor([2]), torch.zeros(1, DIM, dtype=torch.float64))
        changed = (reference.rows_VD != rows()).any(1)
        assert changed.tolist() == [False, False, True, False, False, False]
