"""Solvers and neighbours: each against a dense solution in float64, and their identities."""

import numpy as np
import pytest
import torch

from distrec.core.errors import UserError
from distrec.data.dataset import Part
from distrec.models.ease import invert_, solve_
from distrec.models.ials import solve_rows, solve_rows_reference
from distrec.models.itemknn import nearest
from distrec.training.loop import make_learner
from tests.conftest import changed

CPU = torch.device("cpu")
FORMS = {
    "plain": {},
    "plain_nu_0": {"frequency_exponent": 0.0, "regularization": 2.0, "unobserved_weight": 0.7},
    "ratio": {"debiased": True, "alpha": 0.5},
    "topk": {"debiased": True, "form": "topk", "k": 30},
}


@pytest.fixture(scope="module")
def interactions(dataset):
    """X, (users, items), float64."""
    m = dataset.manifest
    x_UV = np.zeros((m.users, m.items))
    x_UV[dataset.interactions(Part.TRAIN, range(m.buckets))] = 1
    return x_UV


def learner_of(small, dataset, **model):
    return make_learner(changed(small, model=model), dataset, CPU)


def coefficients(options, x_UV):
    """c_u of each user by the formula, (users, 1)."""
    if not options.get("debiased"):
        return np.ones((len(x_UV), 1))
    known_U1 = x_UV.sum(1, keepdims=True)
    wanted_U1 = 1 + options["k"] / known_U1 if options.get("form") == "topk" else 1 + options["alpha"] + 0 * known_U1
    return np.minimum(wanted_U1, x_UV.shape[1] / known_U1)


def objective(options, x_UV, users_UD, items_VD):
    """Return the objective of iALS as it is printed, and that of the debiased form."""
    a0, lam, nu = (options.get(k, v) for k, v in DEFAULTS.items())
    y_UV = users_UD @ items_VD.T
    minus = a0 * y_UV**2 if options.get("debiased") else 0
    fit = (x_UV * coefficients(options, x_UV) * ((y_UV - 1) ** 2 - minus)).sum() + a0 * (y_UV**2).sum()
    lam_U = lam * (x_UV.sum(1) + a0 * x_UV.shape[1]) ** nu
    lam_V = lam * (x_UV.sum(0) + a0 * x_UV.shape[0]) ** nu
    return fit + lam_U @ (users_UD**2).sum(1) + lam_V @ (items_VD**2).sum(1)


DEFAULTS = {"unobserved_weight": 0.1, "regularization": 0.003, "frequency_exponent": 1.0}


def best_users(options, x_UV, items_VD):
    """Return the users that minimise the objective, by a dense solution for each."""
    a0, lam, nu = (options.get(k, v) for k, v in DEFAULTS.items())
    c_U1, share, rows = coefficients(options, x_UV), 1 - a0 if options.get("debiased") else 1.0, []
    for x_V, (c,) in zip(x_UV, c_U1, strict=True):
        ridge = lam * (x_V.sum() + a0 * len(x_V)) ** nu * np.eye(items_VD.shape[1])
        matrix_DD = c * share * (items_VD.T * x_V) @ items_VD + a0 * items_VD.T @ items_VD + ridge
        rows.append(np.linalg.solve(matrix_DD, c * items_VD.T @ x_V))
    return np.array(rows)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.long
def test_each_half_step_minimises_the_objective(small, dataset, interactions, form):
    options = FORMS[form]
    learner = learner_of(small, dataset, name="ials", dim=8, **options)
    users_UD, items_VD = (learner.rows[entity].double().requires_grad_() for entity in ("users", "items"))
    before = objective(options, interactions, users_UD.detach().numpy(), items_VD.detach().numpy())
    for epoch in range(2):
        expected_UD = best_users(options, interactions, learner.rows["items"].double().numpy())
        loss = learner.train_epoch(epoch, 0, iter(()), lambda done, total: None)
        users_UD = learner.rows["users"].double().numpy()
        np.testing.assert_allclose(users_UD, expected_UD, rtol=1e-4, atol=1e-5 * abs(expected_UD).max())
        items_VD = learner.rows["items"].double().numpy()
        after = objective(options, interactions, users_UD, items_VD)
        assert loss == pytest.approx(after, rel=1e-6) and after < before
        assert_no_gradient(options, interactions, users_UD, items_VD, of="items")
        learner.half_step("users")
        users_UD = learner.rows["users"].double().numpy()
        before = objective(options, interactions, users_UD, items_VD)
        assert before < after
        assert_no_gradient(options, interactions, users_UD, items_VD, of="users")


def assert_no_gradient(options, x_UV, users_UD, items_VD, of):
    """Assert that the gradient, by central differences along random directions, is small beside the curvature."""
    rng = np.random.default_rng(0)
    rows = {"users": users_UD, "items": items_VD}
    for _ in range(3):
        direction = rng.normal(size=rows[of].shape) * 1e-2
        values = [objective(options, x_UV, *(rows | {of: rows[of] + s * direction}).values()) for s in (-1, 0, 1)]
        slope, curvature = (values[2] - values[0]) / 2, values[2] + values[0] - 2 * values[1]
        assert curvature > 0 and abs(slope) < 1e-2 * curvature


@pytest.mark.parametrize("dim", [1, 7, 16, 33, 64, 100])
@pytest.mark.long
def test_compiled_and_readable_solutions_agree(dim):
    rng = np.random.default_rng(dim)
    counts_R = np.array([0, 1, 31, 32, 33, 3, 200, 0, 5])
    lists = np.concatenate([[0], np.cumsum(counts_R)]), rng.integers(0, 50, counts_R.sum()).astype(np.int32)
    others_UD = torch.from_numpy(rng.normal(0, 0.3, (50, dim)))
    parts = (rng.random(9) + 0.5, rng.random(50) + 0.5), 0.2 * others_UD.T @ others_UD, rng.random(9) + 0.1, 0.8
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-4)):
        arguments = lists, others_UD.to(dtype), parts[0], parts[1].to(dtype), *parts[2:]
        found, expected = solve_rows(*arguments), solve_rows_reference(lists, others_UD, *parts)
        torch.testing.assert_close(found[0].double(), expected[0], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(found[1], expected[1], rtol=tolerance, atol=tolerance)
        assert found[0].dtype == dtype and not found[0][counts_R == 0].any()
    rows = slice(lists[0][6], lists[0][7])
    y_PD, c_P = others_UD.numpy()[lists[1][rows]], parts[0][0][6] * parts[0][1][lists[1][rows]]
    matrix_DD = 0.8 * (y_PD.T * c_P) @ y_PD + parts[1].numpy() + parts[2][6] * np.eye(dim)
    np.testing.assert_allclose(expected[0][6], np.linalg.solve(matrix_DD, y_PD.T @ c_P), rtol=1e-8, atol=1e-9)


def test_long_and_short_rows_in_batches(monkeypatch):
    """Batches of the readable solution that hold few values."""
    monkeypatch.setattr("distrec.models.ials._CELLS", 300)
    test_compiled_and_readable_solutions_agree(7)


def test_theorem_1_a_constant_coefficient_is_a_plain_step_times_a_factor(small, dataset):
    """Debiased with c: 1 / (1 - a0) times the plain step with a0' = a0 / ((1 - a0) c) and lam' likewise (nu = 0)."""
    a0, lam, c = 0.2, 3.0, 1.5
    common = {"name": "ials", "dim": 8, "frequency_exponent": 0.0}
    debiased = {"debiased": True, "alpha": c - 1, "unobserved_weight": a0, "regularization": lam}
    scale = (1 - a0) * c
    pair = [
        learner_of(small, dataset, **common, **debiased),
        learner_of(small, dataset, **common, unobserved_weight=a0 / scale, regularization=lam / scale),
    ]
    for learner in pair:
        learner.half_step("users")
    torch.testing.assert_close(pair[0].rows["users"], pair[1].rows["users"] / (1 - a0), rtol=1e-4, atol=1e-6)


def test_singular_systems_are_an_error(small, dataset):
    options = {"unobserved_weight": 0.0, "regularization": 1e-30, "frequency_exponent": 0.0}
    with pytest.raises(UserError, match="raise model.regularization"):
        learner_of(small, dataset, name="ials", dim=64, **options).half_step("users")
    with pytest.raises(UserError, match="must be below 1"):
        learner_of(small, dataset, name="ials", debiased=True, unobserved_weight=1.0)


def ease(x_UV, lam):
    """EASE as it is printed."""
    p_VV = np.linalg.inv(x_UV.T @ x_UV + lam * np.eye(x_UV.shape[1]))
    s_VV = -p_VV / np.diag(p_VV)
    np.fill_diagonal(s_VV, 0)
    return s_VV


def ease_objective(options, x_UV, s_VV):
    c_U1, y_UV = coefficients(options, x_UV), x_UV @ s_VV
    a, lam = options.get("prediction_discount", 0.0), options.get("regularization", 200.0)
    fit = (c_U1 * x_UV * ((y_UV - 1) ** 2 - y_UV**2)).sum() + (1 - a) * (y_UV**2).sum()
    return fit + lam * (s_VV**2).sum()


EASE_FORMS = {
    "plain": ({"regularization": 50.0}, lambda x: ease(x, 50)),
    "discount": ({"prediction_discount": 0.4}, lambda x: ease(x, 200 / 0.6) / 0.6),
    "constant": ({"debiased": True, "alpha": 0.5}, lambda x: 1.5 * ease(x, 200)),
    "by_user": ({"debiased": True, "form": "topk", "k": 20}, None),
    "by_user_and_discount": ({"debiased": True, "form": "topk", "k": 5, "prediction_discount": 0.3}, None),
}


@pytest.mark.parametrize("form", EASE_FORMS)
def test_ease_minimises_its_objective(small, dataset, interactions, form):
    options, formula = EASE_FORMS[form]
    learner = learner_of(small, dataset, name="ease", **options)
    loss = learner.train_epoch(0, 0, iter(()), lambda done, total: None)
    s_VV = learner.weights_XV.double().numpy()
    assert not np.diag(s_VV).any()
    if formula is not None:
        np.testing.assert_allclose(s_VV, formula(interactions), atol=1e-6)
    least = ease_objective(options, interactions, s_VV)
    assert loss == pytest.approx(least, rel=1e-6)
    rng = np.random.default_rng(0)
    for _ in range(5):
        change_VV = rng.normal(size=s_VV.shape) * (rng.random(s_VV.shape) < rng.choice([0.01, 1.0]))
        np.fill_diagonal(change_VV, 0)
        values = [ease_objective(options, interactions, s_VV + step * change_VV) for step in (-1e-3, 1e-3)]
        assert min(values) > least and abs(values[1] - values[0]) < 1e-2 * (sum(values) - 2 * least)
    single = learner_of(small, dataset, name="ease", precision="float32", **options)
    single.train_epoch(0, 0, iter(()), lambda done, total: None)
    np.testing.assert_allclose(single.weights_XV.numpy(), s_VV, atol=1e-4)


def test_per_user_coefficients_that_are_equal_are_the_constant_form():
    rng = np.random.default_rng(0)
    x = torch.from_numpy((rng.random((60, 20)) < 0.2).astype(float))
    by_user, objective_by_user = solve_(x.T @ x, 1.7 * x.T @ x, 3.0, 0.2, 1.0)
    constant, objective_of_constant = solve_(x.T @ x, None, 3.0, 0.2, 1.7)
    torch.testing.assert_close(by_user, constant)
    assert objective_by_user == pytest.approx(objective_of_constant)


def test_the_inverse_takes_no_copy_and_sees_singular_matrices():
    rows = torch.randn(40, 30, dtype=torch.float64)
    matrix = rows.T @ rows
    expected, start = torch.linalg.inv(matrix), matrix.data_ptr()
    assert invert_(matrix) and matrix.data_ptr() == start
    torch.testing.assert_close(matrix, expected)
    assert not invert_(torch.zeros(3, 3))


def test_ease_that_does_not_fit_is_refused(small, dataset):
    config = changed(small, model={"name": "ease"})
    learner = make_learner(config, dataset, CPU)
    first, other = learner.needed_bytes()
    assert (first, other) == (200**2 * 12, 200**2 * 4)
    learner.items = 3_000_000
    with pytest.raises(
        UserError, match=r"3,000,000 x 3,000,000 float64, .* more than are free; set .*float32, or .*ials"
    ):
        learner.train_epoch(0, 0, iter(()), lambda done, total: None)


@pytest.mark.parametrize("neighbours, shrink", [(10, 0.0), (10, 5.0), (1000, 0.0)])
def test_itemknn_sums_cosines_of_the_nearest(small, dataset, interactions, neighbours, shrink):
    learner = learner_of(small, dataset, name="itemknn", neighbours=neighbours, shrink=shrink)
    learner.train_epoch(0, 0, iter(()), lambda done, total: None)
    norm_V = np.sqrt(interactions.sum(0))
    cosine_VV = interactions.T @ interactions / np.maximum(np.outer(norm_V, norm_V) + shrink, 1e-9)
    np.fill_diagonal(cosine_VV, 0)
    kept_VV = np.zeros_like(cosine_VV)
    for item, row_V in enumerate(cosine_VV.astype(np.float32)):
        best = np.lexsort((np.arange(len(row_V)), -row_V))[:neighbours]
        kept_VV[best, item] = cosine_VV[item, best]
    users, items = np.array([5, 0, 17]), np.arange(0, 200, 3)
    out_UV = torch.empty(3, len(items))
    learner.scores(users, items, out_UV)
    np.testing.assert_allclose(out_UV.numpy(), (interactions[users] @ kept_VV)[:, items], rtol=1e-5, atol=1e-6)


def test_ties_of_neighbours_go_to_the_lower_id():
    similarity = torch.tensor([[0.0, 0.5, 1.0, 0.5, 0.5], [0.0, 0.0, 0.0, 1e-30, 0.0]])
    ids, values = nearest(similarity, 3)
    assert ids.tolist() == [[2, 1, 3], [3, -1, -1]]
    assert values.tolist() == [[1.0, 0.5, 0.5], [pytest.approx(1e-30), 0.0, 0.0]]


def test_popularity_counts(small, dataset, interactions):
    learner = learner_of(small, dataset, name="pop")
    loss = learner.train_epoch(0, 0, iter(()), lambda done, total: None)
    users, items = learner.representations(np.arange(3))
    assert (users @ items.T).numpy().tolist() == [interactions.sum(0).tolist()] * 3
    share = interactions.sum(0) / interactions.sum()
    assert loss == pytest.approx(-interactions.sum() * (share[share > 0] * np.log(share[share > 0])).sum())


def test_implicit_reaches_the_same_objective(small, dataset, interactions):
    """The debiased form with c_u = 1, nu = 0, a0 = 1 / alpha, lam = regularization / alpha is implicit's objective."""
    als, sparse = pytest.importorskip("implicit.als"), pytest.importorskip("scipy.sparse")
    alpha, regularization = 10.0, 5.0
    options = {"unobserved_weight": 1 / alpha, "regularization": regularization / alpha, "frequency_exponent": 0.0}
    options |= {"debiased": True, "alpha": 0.0}
    learner = learner_of(small, dataset, name="ials", dim=8, **options)
    rival = als.AlternatingLeastSquares(8, regularization, alpha, use_cg=False, iterations=10, num_threads=1)
    rival.user_factors, rival.item_factors = (learner.rows[k].numpy().copy() for k in ("users", "items"))
    rival.fit(sparse.csr_matrix(interactions.astype(np.float32)), show_progress=False)
    for epoch in range(10):
        loss = learner.train_epoch(epoch, 0, iter(()), lambda done, total: None)
    theirs = objective(options, interactions, rival.user_factors.astype(float), rival.item_factors.astype(float))
    assert loss == pytest.approx(theirs, rel=1e-4)
    torch.testing.assert_close(learner.rows["items"], torch.from_numpy(rival.item_factors), rtol=0.05, atol=0.005)
