"""Check the device's draws against the project's, bit for bit, and its steps against a dense reference in float64.

    TRITON_INTERPRET=1 python -m benchmarks.gpu.checks

Without a GPU, small sizes run in Triton's interpreter. A check returns a line to print, and raises AssertionError on a
difference.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from distrec.core.randomness import Purpose, uniforms
from distrec.sampling.config import SamplingConfig
from distrec.sampling.negatives import NegativeSampler, item_masses

from . import synthetic
from .draws import COUNT, EPOCH, STATE, STEP, to_device
from .step import BETA1, BETA2, EPS, STEPS, Interactions, SharedSoftmax, Step, Table, coefficients

Sizes = tuple[int, int, int]  # users, items, interactions


def masses(law: str, items: int, item_E: np.ndarray, users: int) -> np.ndarray:
    """Return masses of items: `law` is uniform or popularity."""
    return item_masses(SamplingConfig(distribution=law, beta=0.75), np.bincount(item_E, minlength=items), users)


def draws_for_pairs(
    sampler: NegativeSampler, seed: int, epoch: int, ordinal_B: np.ndarray, user_B: np.ndarray, n: int
) -> np.ndarray:
    """Return the project's negatives of pairs, (B, n)."""
    draws = [
        uniforms(seed, Purpose.NEGATIVES, epoch, 0, first=int(ordinal) * n, count=n, half_words=sampler.half_words)
        for ordinal in ordinal_B
    ]
    return sampler.draw(np.stack(draws), user_B[:, None])


def shared_draws(sampler: NegativeSampler, seed: int, epoch: int, step: int, n: int) -> np.ndarray:
    """Return the project's negatives of a step, (n,)."""
    return sampler.draw(uniforms(seed, Purpose.NEGATIVES, epoch, 1, first=step * n, count=n), None)


def with_all_items(user: int, user_E: np.ndarray, item_E: np.ndarray, items: int) -> tuple[np.ndarray, np.ndarray]:
    """Return sorted interactions in which a user knows every item."""
    others = user_E != user
    user_E = np.concatenate([user_E[others], np.full(items, user)])
    item_E = np.concatenate([item_E[others], np.arange(items)])
    order = np.lexsort((item_E, user_E))
    return user_E[order], item_E[order]


def check_draws(device: str, sizes: Sizes, pairs: int, n: int, law: str, exclude: bool, saturate: bool = True) -> str:
    """Check the draws of steps with random users and ordinals; with `saturate`, user 1 knows every item."""
    users, items, count = sizes
    seed, epoch = 2**63 + 11, 3
    user_E, item_E = synthetic.interactions(users, items, count, 5)
    mass_V = masses(law, items, item_E[item_E % 7 != 0], users)  # by popularity, some items are never drawn
    if saturate:
        user_E, item_E = with_all_items(1, user_E, item_E, items)
    sampler = NegativeSampler(mass_V, synthetic.csr(users, user_E, item_E) if exclude else None)
    random = np.random.default_rng(0)
    user_B, ordinal_B = random.integers(0, users, pairs), random.integers(0, 2**31 - 1, pairs)
    user_B[:3] = 1, 0, users - 1
    state = torch.zeros(STATE, dtype=torch.int64)
    state[COUNT], state[EPOCH], state[STEP] = pairs - 1, epoch, 5
    expected_BN = draws_for_pairs(sampler, seed, epoch, ordinal_B[:-1], user_B[:-1], n)
    for kind in ("softmax", "bpr", "shared") if n == 1 else ("softmax", "shared"):
        data = Interactions.of(user_E, item_E, pairs, 0, device)
        table = Table.of(torch.ones(users + items, 8, device=device))
        device_sampler, ones = to_device(sampler, seed, device), torch.ones(1, 4, device=device)
        step: Any = STEPS[kind](data, table, device_sampler, users, pairs, n, ones)
        step.state.copy_(state)
        step.batch.user_B.copy_(torch.from_numpy(user_B))
        step.batch.ordinal_B.copy_(torch.from_numpy(ordinal_B))
        if isinstance(step, SharedSoftmax):
            step.draw()
            assert (step.drawn_N.cpu().numpy() == shared_draws(sampler, seed, epoch, 5, n)).all(), "shared draws differ"
            continue
        step.item_BN.fill_(-7)
        step.scores()
        drawn_BN = step.item_BN.cpu().numpy()
        different = (drawn_BN[:-1] != expected_BN).sum()
        assert different == 0, f"{kind}: {different} of {expected_BN.size} differ"
        assert (drawn_BN[-1] == -7).all(), "a pair past the count was drawn for"
        touched = np.flatnonzero(table.touched_V[users:].cpu().numpy() == 1)
        assert (touched == np.unique(expected_BN)).all(), "touched rows differ from the items drawn"
    bits = 32 if sampler.half_words else 53
    return f"draws: {law}, {items} items, {'positives excluded, ' if exclude else ''}{bits} bits, B {pairs}, N {n}"


class Reference:
    """Dense float64 training: lazy Adam on touched rows, decoupled decay of all rows."""

    def __init__(self, x_VD: Tensor, users: int, lr: float, decay: float) -> None:
        self.w_VD = x_VD.double().clone()
        self.m_VD, self.v_VD = torch.zeros_like(self.w_VD), torch.zeros_like(self.w_VD)
        self.users, self.lr, self.decay, self.time = users, lr, decay, 0

    def step(self, loss: Callable[[Tensor], Tensor], touched: Tensor) -> tuple[float, Tensor]:
        """Take a step of a loss of the rows; return (loss, gradient)."""
        w_VD = self.w_VD.clone().requires_grad_()
        value = loss(w_VD)
        value.backward()
        g_VD, t, r = w_VD.grad, self.time + 1, touched
        assert g_VD is not None
        self.m_VD[r] = BETA1 * self.m_VD[r] + (1 - BETA1) * g_VD[r]
        self.v_VD[r] = BETA2 * self.v_VD[r] + (1 - BETA2) * g_VD[r] ** 2
        root = (self.v_VD[r] / (1 - BETA2**t)).sqrt() + EPS
        self.w_VD *= 1 - self.lr * self.decay
        self.w_VD[r] -= self.lr * self.m_VD[r] / (1 - BETA1**t) / root
        self.time = t
        return value.item(), g_VD


def loss_of_rows(
    kind: str, users: int, u: Tensor, p: Tensor, n: Tensor, excluded: Tensor | None, temperature: float, w_VD: Tensor
) -> Tensor:
    """Return the loss of all rows. n: negatives (B, N), or (N,) if shared; excluded: mask of shared negatives."""
    if kind == "bpr":
        user = w_VD[u]
        return functional.softplus((user * w_VD[users + n[:, 0]]).sum(1) - (user * w_VD[users + p]).sum(1)).mean()
    y_VD = functional.normalize(w_VD)
    positive = (y_VD[u] * y_VD[users + p]).sum(1, keepdim=True) / temperature
    if kind == "softmax":
        scores = torch.einsum("bd,bnd->bn", y_VD[u], y_VD[users + n]) / temperature
    else:
        scores = y_VD[u] @ y_VD[users + n].T / temperature
    if excluded is not None:
        scores = scores.masked_fill(excluded, float("-inf"))
    if kind != "exact":  # all items contain the positive
        scores = torch.cat([positive, scores], 1)
    return (torch.logsumexp(scores, 1) - positive[:, 0]).mean()


def gradient(step: Step) -> Tensor:
    """Run a first step part by part; return the gradient of its stored rows, float64."""
    table = step.table
    step.gather()
    step.scores()
    grad_VD = table.grad_VD.double().clone()
    if step.cosine:  # the device's is that of the normalised rows
        inverse = 1 / table.x_VD.double().norm(dim=1, keepdim=True)
        y_VD = table.x_VD.double() * inverse
        grad_VD = (grad_VD - y_VD * (y_VD * grad_VD).sum(1, keepdim=True)) * inverse
    if step.listed:
        step.list_rows()
    step.optimize()
    step.advance()
    return grad_VD


class StepCheck:
    """Training on the device beside the reference, step by step.

    Rows are compared by ||x - reference|| / ||reference - start||: a single element whose gradients nearly cancel may
    move in the other direction.
    """

    lr, decay, temperature, seed = 1e-2, 0.1, 0.1, 17

    def __init__(
        self,
        device: str,
        kind: str,
        sizes: Sizes,
        pairs: int,
        n: int,
        dim: int,
        steps: int,
        exclude: bool = True,
        law: str = "uniform",
        listed: bool = False,
    ) -> None:
        self.kind, self.n, self.exclude, (self.users, self.items, _) = kind, n, exclude, sizes
        user_E, item_E = synthetic.interactions(*sizes, 1)
        positives, self.known_E = synthetic.csr(self.users, user_E, item_E), user_E * self.items + item_E
        self.own = kind in ("softmax", "bpr")
        mass_V = masses(law, self.items, item_E, self.users)
        self.sampler = NegativeSampler(mass_V, positives if exclude and self.own else None)
        self.data = Interactions.of(user_E, item_E, pairs, 3, device)
        generator = torch.Generator().manual_seed(0)
        self.x_VD = (0.3 * torch.randn(self.users + self.items, dim, generator=generator)).to(device)
        table = torch.from_numpy(coefficients(self.lr, self.decay, steps + 1)).float().to(device)
        indptr, indices = (torch.from_numpy(a).to(device) for a in positives)
        self.step: Any = STEPS[kind](
            *(self.data, Table.of(self.x_VD), to_device(self.sampler, self.seed, device), self.users, pairs, n, table),
            temperature=self.temperature,
            listed=listed,
            positives=(indptr, indices) if kind == "shared" and exclude else None,
        )
        self.reference = Reference(self.x_VD, self.users, self.lr, self.decay)

    def draws(self, s: int, user_B: np.ndarray) -> np.ndarray:
        """Return the project's negatives of step s, (B, N); (N,) if shared; all items for the exact softmax."""
        epoch, step = divmod(s, self.data.steps)
        if self.own:
            ordinal_B = int(self.data.start_S[step]) + np.arange(len(user_B))
            return draws_for_pairs(self.sampler, self.seed, epoch, ordinal_B, user_B, self.n)
        if self.kind == "shared":
            return shared_draws(self.sampler, self.seed, epoch, step, self.n)
        return np.arange(self.items)

    def check(self, s: int, run_step: Callable[[], Tensor | None]) -> float:
        """Run step s and compare draws, loss and the gradient that it returns; return the gradient's error."""
        first, last = (int(self.data.start_S[s % self.data.steps + k]) for k in (0, 1))
        index = self.data.order_E[first:last].long()
        u, p = self.data.user_E[index].long(), self.data.item_E[index].long()
        drawn = self.draws(s, u.cpu().numpy())
        negatives, excluded = torch.from_numpy(drawn).to(u).long(), None
        if self.exclude and self.kind != "exact":
            known = np.isin(u.cpu().numpy()[:, None] * self.items + drawn, self.known_E)
            assert self.kind == "shared" or not known.any(), "a positive was drawn"
            excluded = torch.from_numpy(known).to(u.device)
        grad_VD = run_step()
        loss = partial(loss_of_rows, self.kind, self.users, u, p, negatives, excluded, self.temperature)
        touched = torch.cat([u, self.users + p, self.users + negatives.ravel()]).unique()
        expected, g_VD = self.reference.step(loss, touched)
        value = self.step.batch.loss_B[: last - first].double().mean().item()
        assert abs(value - expected) < 1e-4 * abs(expected), (s, value, expected)
        if self.kind != "exact":
            device_draws = self.step.drawn_N if self.kind == "shared" else self.step.item_BN[: last - first]
            assert (device_draws.cpu().numpy() == drawn).all(), f"step {s}: draws differ"
        error = 0.0 if grad_VD is None else ((grad_VD - g_VD).norm() / g_VD.norm()).item()
        assert error < 3e-5, f"gradients differ by {error:.1e}"
        return error

    def row_error(self) -> float:
        """Return the error of the rows."""
        w_VD = self.reference.w_VD
        scale = (1 - self.lr * self.decay) ** self.reference.time
        return ((self.step.table.x_VD.double() * scale - w_VD).norm() / (w_VD - self.x_VD).norm()).item()


def check_steps(capture: bool, *args: Any, **options: Any) -> str:
    """Check steps: draws bit for bit, losses and rows to a tolerance. `capture`: as replays of a CUDA graph."""
    training, (_, kind, _, pairs, n, _, steps) = StepCheck(*args, **options), args
    gradient_error = training.check(0, partial(gradient, training.step))
    run_step = graph_of(training.step) if capture else training.step
    for s in range(1, steps):
        training.check(s, run_step)
    error = training.row_error()
    assert error < 1e-3, f"rows differ by {error:.1e} after {steps} steps"
    name = f"{kind} B {pairs} N {n} {options}{' graph' if capture else ''}"
    return f"{name}: {steps} steps, gradient within {gradient_error:.0e}, rows within {error:.0e}"


def graph_of(launch: Callable[[], object]) -> Callable[[], None]:
    """Capture as a CUDA graph what has been launched before, and return its replay. Capturing executes nothing."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    return graph.replay


def all_checks(device: str, large: bool) -> Iterator[Callable[[], str]]:
    """Return the checks: small ones for the interpreter, large ones for a GPU."""
    draws_of: tuple[Sizes, int] = (synthetic.GOWALLA, 512) if large else ((12, 41, 90), 5)
    (users, items, count), pairs = draws_of
    many = (800, 100, 9, 1) if large else (9, 1)
    for law in ("uniform", "popularity"):
        for exclude in (False, True):
            for n in many if law == "uniform" else (many[0], 1):
                yield partial(check_draws, device, (users, items, count), pairs, n, law, exclude)
    beyond_half_words = 300_000 if large else 2**18 + 5
    yield partial(check_draws, device, (users, beyond_half_words, count), pairs, many[0], "uniform", True, False)
    # 70 steps are more than an epoch.
    sizes, pairs, many_n, dim, steps = (
        ((5000, 20_000, 12_000), 192, 64, 64, 70) if large else ((9, 23, 40), 15, 6, 8, 5)
    )
    variants: list[tuple[str, int, dict[str, Any]]] = [
        ("softmax", many_n, {}),
        ("softmax", many_n, {"listed": True}),
        ("softmax", many_n, {"exclude": False}),
        ("softmax", many_n, {"law": "popularity"}),
        ("bpr", 1, {}),
        ("bpr", 1, {"listed": True}),
        ("shared", many_n, {"listed": True}),
        ("shared", many_n, {"exclude": False}),
        ("exact", 0, {}),
    ]
    for kind, n, options in variants:
        yield partial(check_steps, large, device, kind, sizes, pairs, n, dim, steps, **options)
    if large:
        yield partial(check_steps, True, device, "softmax", synthetic.GOWALLA, 512, 800, 64, 3)


def run_checks(device: str, large: bool) -> list[tuple[bool, str]]:
    """Run and print all checks; return (passed, line) of each."""
    found = []
    for check in all_checks(device, large):
        try:
            found.append((True, check()))
        except Exception as error:
            found.append((False, f"{check}: {type(error).__name__}: {str(error)[:400]}"))
        print("ok   " if found[-1][0] else "FAIL ", found[-1][1], flush=True)
    return found


if __name__ == "__main__":
    gpu = torch.cuda.is_available()
    sys.exit(not all(passed for passed, _ in run_checks("cuda" if gpu else "cpu", large=gpu)))
