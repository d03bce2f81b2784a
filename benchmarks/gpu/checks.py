"""Compare the device's draws bit for bit with numpy's, and its steps with a dense reference in float64.

Small sizes run in Triton's interpreter (TRITON_INTERPRET=1, device "cpu"), large ones on a GPU. Each check returns a
line to print and raises AssertionError on a difference.
"""
# ruff: noqa: ANN001, ANN201  (Triton infers the types of what it compiles)

from collections.abc import Callable

import numpy as np
import torch
import triton
import triton.language as tl

from . import draws, made
from .draws import COUNT, EPOCH, STATE, STEP, philox_words, sampler_tables
from .oracle import NEGATIVES, Oracle
from .step import (
    BETA1,
    BETA2,
    BPR,
    EPS,
    ExactSoftmax,
    Interactions,
    SampledSoftmax,
    SharedSoftmax,
    Step,
    Tables,
    coefficients,
    draw_shape,
)


@triton.jit
def raw_words(stream, out, BLOCK: tl.constexpr):
    """Write the words of BLOCK blocks of the stream (first block, index, second index, seed, purpose)."""
    k = tl.arange(0, BLOCK)
    block = tl.load(stream).to(tl.uint64) + k.to(tl.uint64)
    a, b, c, d = philox_words(
        block,
        tl.load(stream + 1).to(tl.uint64),
        tl.load(stream + 2).to(tl.uint64),
        tl.load(stream + 3).to(tl.uint64),
        tl.load(stream + 4).to(tl.uint64),
    )
    tl.store(out + 4 * k, a.to(tl.int64))
    tl.store(out + 4 * k + 1, b.to(tl.int64))
    tl.store(out + 4 * k + 2, c.to(tl.int64))
    tl.store(out + 4 * k + 3, d.to(tl.int64))


def check_words(device: str, block: int) -> str:
    """Compare the words of Philox4x64-10 with numpy.random.Philox, with extreme keys and counters."""
    for seed, first, index, second in ((0, 0, 0, 0), (2**64 - 1, 2**40, 2**33 + 5, 1), (2**63 + 7, 2**62, 3, 0)):
        stream = np.array([first, index, second, seed, 2], np.uint64).view(np.int64)
        out = torch.zeros(4 * block, dtype=torch.int64, device=device)
        raw_words[(1,)](torch.from_numpy(stream).to(device), out, BLOCK=block)
        wanted = np.random.Philox(
            key=np.array([seed, 2], np.uint64), counter=np.array([first, index, second, 0], np.uint64)
        ).random_raw(4 * block)
        assert (out.cpu().numpy().view(np.uint64) == wanted).all(), (seed, first)
    return f"words of Philox4x64-10 equal numpy's ({3 * 4 * block} words)"


def _problem(
    users: int, items: int, count: int, seed: int, law: str, exclude: bool, saturate: bool
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """Return (masses, positives or None) for a check of draws."""
    user_E, item_E = made.interactions(users, items, count, seed)
    mass_V = np.ones(items, np.int64)
    if law == "popularity":
        mass_V = made.popularity_masses(items, item_E[item_E % 7 != 0], 0.75, users)  # some items are never drawn
    if saturate:  # user 1 knows every item
        others = user_E != 1
        user_E = np.concatenate([user_E[others], np.full(items, 1)])
        item_E = np.concatenate([item_E[others], np.arange(items)])
        order = np.lexsort((item_E, user_E))
        user_E, item_E = user_E[order], item_E[order]
    return mass_V, made.csr(users, user_E, item_E) if exclude else None


def check_draws(
    device: str, users: int, items: int, count: int, pairs: int, n: int, law: str, exclude: bool, saturate: bool = True
) -> str:
    """Compare the negatives of pairs with the oracle's; also one a pair where n is 1, and shared ones."""
    seed, epoch = 2**63 + 11, 3
    mass_V, positives = _problem(users, items, count, 5, law, exclude, saturate)
    tables, oracle = sampler_tables(mass_V, positives, seed, NEGATIVES, device), Oracle(mass_V, positives)
    assert (tables.halves, tables.even) == (oracle.halves, oracle.even)
    random = np.random.default_rng(0)
    user_B = random.integers(0, users, pairs)
    user_B[:3] = 1, 0, users - 1
    number_B = random.integers(0, 2**31 - 1, pairs)
    state = torch.zeros(STATE, dtype=torch.int64)
    state[COUNT], state[EPOCH], state[STEP] = pairs - 1, epoch, 5
    state = state.to(device)
    user, number = (torch.from_numpy(a.astype(np.int32)).to(device) for a in (user_B, number_B))
    item_BN = torch.full((pairs, n), -7, dtype=torch.int32, device=device)
    mark_V = torch.zeros(items, dtype=torch.int32, device=device)
    block, warps = draw_shape(n, tables.halves)
    draws.draw_pairs[(pairs,)](
        *(user, number, item_BN, mark_V, state, n, *tables.arguments),
        **tables.options,
        MARK=True,
        BLOCK=block,
        num_warps=warps,
    )
    wanted_BN = oracle.draw_pairs(seed, epoch, number_B[:-1], user_B[:-1], n)
    got_BN = item_BN.cpu().numpy()
    assert (got_BN[:-1] == wanted_BN).all(), f"{(got_BN[:-1] != wanted_BN).sum()} of {wanted_BN.size} differ"
    assert (got_BN[-1] == -7).all(), "a pair past the count was drawn for"
    marked = np.flatnonzero(mark_V.cpu().numpy() == 1)
    assert (marked == np.unique(wanted_BN)).all(), "marks differ from the items drawn"
    if n == 1:
        item_BN.fill_(-7)
        draws.draw_singles[(triton.cdiv(pairs, 128),)](
            *(user, number, item_BN, mark_V, state, pairs, *tables.arguments), **tables.options, MARK=True, BLOCK=128
        )
        got_BN = item_BN.cpu().numpy()
        assert (got_BN[:-1] == wanted_BN).all(), "single draws differ"
        assert (got_BN[-1] == -7).all(), "a pair past the count was drawn for"
    item_N = torch.full((n,), -7, dtype=torch.int32, device=device)
    draws.draw_shared[(triton.cdiv(n + 7, 64),)](
        *(item_N, mark_V, state, n, *tables.arguments), EVEN=tables.even, MARK=False, BLOCK=64
    )
    assert (item_N.cpu().numpy() == oracle.draw_shared(seed, epoch, 5, n)).all(), "shared draws differ"
    kind = f"{law}, {items} items, {'positives excluded' if exclude else 'nothing excluded'}"
    return f"draws equal numpy's: {kind}, {'32' if tables.halves else '53'} bits, B {pairs}, N {n}"


class Reference:
    """Dense float64 training in plain torch: lazy Adam on touched rows, decoupled decay of all rows."""

    def __init__(self, x_VD: torch.Tensor, users: int, lr: float, decay: float) -> None:
        self.w_VD = x_VD.double().clone()
        self.m_VD, self.v_VD = torch.zeros_like(self.w_VD), torch.zeros_like(self.w_VD)
        self.users, self.lr, self.decay, self.time = users, lr, decay, 0

    def step(self, loss: Callable[[torch.Tensor], torch.Tensor], touched: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Take a step of a loss of the rows; return (loss, gradient)."""
        w_VD = self.w_VD.clone().requires_grad_()
        value = loss(w_VD)
        value.backward()
        g_VD, t, r = w_VD.grad, self.time + 1, touched
        self.m_VD[r] = BETA1 * self.m_VD[r] + (1 - BETA1) * g_VD[r]
        self.v_VD[r] = BETA2 * self.v_VD[r] + (1 - BETA2) * g_VD[r] ** 2
        root = (self.v_VD[r] / (1 - BETA2**t)).sqrt() + EPS
        self.w_VD *= 1 - self.lr * self.decay
        self.w_VD[r] -= self.lr * self.m_VD[r] / (1 - BETA1**t) / root
        self.time = t
        return value.item(), g_VD


def _loss(
    kind: str,
    users: int,
    u: torch.Tensor,
    p: torch.Tensor,
    n: torch.Tensor | None,
    out: torch.Tensor | None,
    temperature: float,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the loss as a function of all rows. n: (B, N), or (N,) shared; out: mask of negatives to leave out."""

    def loss(w_VD: torch.Tensor) -> torch.Tensor:
        if kind == "bpr":
            user = w_VD[u]
            return torch.nn.functional.softplus(
                (user * w_VD[users + n[:, 0]]).sum(1) - (user * w_VD[users + p]).sum(1)
            ).mean()
        y_VD = torch.nn.functional.normalize(w_VD)
        positive = (y_VD[u] * y_VD[users + p]).sum(1, keepdim=True) / temperature
        if kind == "exact":
            return (torch.logsumexp(y_VD[u] @ y_VD[users:].T / temperature, 1) - positive[:, 0]).mean()
        if kind == "shared":
            scores = y_VD[u] @ y_VD[users + n].T / temperature
            scores = scores.masked_fill(out, float("-inf")) if out is not None else scores
        else:
            scores = torch.einsum("bd,bnd->bn", y_VD[u], y_VD[users + n]) / temperature
        return (torch.logsumexp(torch.cat([positive, scores], 1), 1) - positive[:, 0]).mean()

    return loss


def check_step(
    device: str,
    kind: str,
    sizes: tuple[int, int, int],
    pairs: int,
    n: int,
    dim: int,
    steps: int,
    exclude: bool = True,
    capture: bool = False,
    law: str = "uniform",
    **options,
) -> str:
    """Compare `steps` steps with the reference: draws bit for bit, losses and rows to a tolerance.

    Rows are compared by ||x - reference|| / ||reference - start||: one by one, an element whose gradients nearly cancel
    may move by another sign. capture: steps but the first are replays of a CUDA graph.
    """
    users, items, count = sizes
    lr, decay, temperature, seed = 1e-2, 0.1, 0.1, 17
    user_E, item_E = made.interactions(users, items, count, 1)
    positives = made.csr(users, user_E, item_E)
    mass_V = np.ones(items, np.int64)
    if law == "popularity":
        mass_V = made.popularity_masses(items, item_E, 0.75, users)
    excluded = positives if exclude and kind in ("softmax", "bpr") else None
    sampler, oracle = sampler_tables(mass_V, excluded, seed, NEGATIVES, device), Oracle(mass_V, excluded)
    data = Interactions.of(users, items, user_E, item_E, pairs, 3, device)
    x_VD = 0.3 * torch.randn(users + items, dim, generator=torch.Generator().manual_seed(0))
    table = torch.from_numpy(coefficients(lr, decay, steps + 1)).float().to(device)
    arguments = (data, Tables(x_VD.to(device)), sampler, pairs, table, temperature)
    if kind == "softmax":
        step = SampledSoftmax(*arguments, negatives=n, **options)
    elif kind == "bpr":
        step = BPR(*arguments, **options)
    elif kind == "shared":
        known = tuple(torch.from_numpy(np.asarray(a, np.int64)).to(device) for a in positives) if exclude else None
        step = SharedSoftmax(*arguments, negatives=n, known=known, **options)
    else:
        step = ExactSoftmax(*arguments, **options)
    reference = Reference(x_VD.to(device), users, lr, decay)
    take, error_g = step, 0.0
    for s in range(steps):
        first, last = (int(data.start_S[s % data.steps + k]) for k in (0, 1))
        epoch, places = s // data.steps, data.order_E[first:last].long()
        u, p = data.user_E[places].long(), data.item_E[places].long()
        size = last - first
        drawn = out = None
        if kind in ("softmax", "bpr"):
            width = n if kind == "softmax" else 1
            drawn = oracle.draw_pairs(seed, epoch, np.arange(first, last), u.cpu().numpy(), width)
            if exclude:
                assert not np.isin(u.cpu().numpy()[:, None] * items + drawn, user_E * items + item_E).any()
        elif kind == "shared":
            drawn = oracle.draw_shared(seed, epoch, s % data.steps, n)
            if exclude:
                out = np.isin(u.cpu().numpy()[:, None] * items + drawn, user_E * items + item_E)
                out = torch.from_numpy(out).to(device)
        negatives = None if drawn is None else torch.from_numpy(drawn).to(device).long()
        scored = torch.arange(items, device=device) if negatives is None else negatives.ravel()
        touched = torch.cat([u, users + p, users + scored])
        if s == 0:  # part by part, to see the gradient
            _run_to_scores(step)
            grad_VD = step.tables.grad_VD.double().clone()
            if step.listed:
                step.compact()
            step.optimize()
            step.advance()
        else:
            if capture and take is step:
                take = graph_of(step)
            take()
        wanted, g_VD = reference.step(_loss(kind, users, u, p, negatives, out, temperature), touched.unique())
        if s == 0:
            if step.cosine:  # the device's is in the normalised rows
                y, i = step_y(x_VD.to(device).double())
                grad_VD = (grad_VD - y * (y * grad_VD).sum(1, keepdim=True)) * i
            error_g = ((grad_VD - g_VD).norm() / g_VD.norm()).item()
            assert error_g < 3e-5, f"gradients differ by {error_g:.1e}"
        loss = step.loss_B[:size].double().mean().item()
        assert abs(loss - wanted) < 1e-4 * abs(wanted), (s, loss, wanted)
        if drawn is not None:
            got = (step.drawn_N if kind == "shared" else step.item_BN[:size]).cpu().numpy()
            assert (got == drawn).all(), f"step {s}: {(got != drawn).sum()} draws differ"
    scale = (1 - lr * decay) ** steps
    moved = (reference.w_VD - x_VD.to(device)).norm()
    error = ((step.tables.x_VD.double() * scale - reference.w_VD).norm() / moved).item()
    assert error < 1e-3, f"rows differ by {error:.1e} after {steps} steps"
    words = ", ".join(f"{k}={v}" for k, v in options.items())
    return (
        f"{kind} {words} exclude={exclude} {law} B {pairs} N {n}: {steps} steps{' (graph)' if capture else ''}, "
        f"gradient within {error_g:.0e}, rows within {error:.0e}"
    )


def _run_to_scores(step: Step) -> None:
    """Run a step's parts up to the scores."""
    step.gather()
    if step.cosine and not step.keep_norm:
        step.normalize()
    step.draw()
    step.scores()


def step_y(w_VD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (normalised rows, inverse norms)."""
    i = 1 / w_VD.norm(dim=1, keepdim=True)
    return w_VD * i, i


def graph_of(launch: Callable[[], None]) -> Callable[[], None]:
    """Capture what has been launched once before as a CUDA graph; return its replay. Capturing executes nothing."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    return graph.replay


def all_checks(device: str, large: bool) -> list[tuple[str, Callable[[], str]]]:
    """Return the checks as (name, function): small for the interpreter, large for a GPU."""
    if large:
        words, (users, items, count), pairs, many = 1024, made.GOWALLA, 512, (800, 100, 9, 1)
        beyond = 300_000
        sizes, step_pairs, n, dim, steps = (5000, 20_000, 12_000), 192, 64, 64, 70  # past the end of an epoch
    else:
        words, (users, items, count), pairs, many = 4, (12, 41, 90), 5, (9, 1)
        beyond = 2**18 + 5
        sizes, step_pairs, n, dim, steps = (9, 23, 40), 15, 6, 8, 5
    found = [("words", lambda: check_words(device, words))]
    for law in ("uniform", "popularity"):
        for exclude in (False, True):
            for k in many if law == "uniform" else many[:: 3 if large else 1]:
                found.append(
                    (
                        f"draws {law} exclude={exclude} N {k}",
                        lambda law=law, exclude=exclude, k=k: check_draws(
                            device, users, items, count, pairs, k, law, exclude
                        ),
                    )
                )
    found.append(
        (
            "draws of 53 bits, uniform",
            lambda: check_draws(device, users, beyond, count, pairs, many[0], "uniform", True, False),
        )
    )
    variants = [
        ("softmax", {"fused": True}),
        ("softmax", {"fused": False, "keep_norm": False}),
        ("softmax", {"fused": True, "listed": True}),
        ("softmax", {"fused": True, "exclude": False}),
        ("softmax", {"fused": True, "law": "popularity"}),
        ("bpr", {"fused": True}),
        ("bpr", {"fused": False, "listed": True}),
        ("shared", {"listed": True}),
        ("shared", {"exclude": False}),
        ("exact", {}),
        ("exact", {"bounded": True}),
    ]
    for kind, options in variants:
        for count_of in (1, steps) if large else (steps,):
            found.append(
                (
                    f"step {kind} {options} x {count_of}",
                    lambda kind=kind, options=options, count_of=count_of: check_step(
                        device, kind, sizes, step_pairs, n, dim, count_of, capture=large and count_of > 1, **options
                    ),
                )
            )
    if large:
        full = {"steps": 3, "capture": True, "fused": True}
        found.append(
            ("step softmax, all of Gowalla", lambda: check_step(device, "softmax", made.GOWALLA, 512, 800, 64, **full))
        )
    return found


if __name__ == "__main__":
    import sys

    on = "cuda" if torch.cuda.is_available() else "cpu"
    failed = 0
    for name, check in all_checks(on, large=on == "cuda"):
        try:
            print("ok   ", check(), flush=True)
        except Exception as error:  # report all
            failed += 1
            print("FAIL ", name, type(error).__name__, error, flush=True)
            if "-v" in sys.argv:
                raise
    sys.exit(failed > 0)
