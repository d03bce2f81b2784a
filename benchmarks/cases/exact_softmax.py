"""Exact softmax over all items, batch 1024, beside the three dense products that it consists of."""

import statistics

import torch
from measure.bench import DIM, Bench
from measure.roofline import Work, bound_rows, now
from measure.training import Training
from measure.training_rows import split_rows
from report import Row, bar_row

from cases.sampled_softmax import ONE_WORKER

_BATCH, _MOST = 1024, 2.5
SETTINGS = ["loss.name=softmax", "model.similarity=dot", f"train.batch_size={_BATCH}"]


def products_ms(bench: Bench) -> float:
    """Return the total duration of the products for scores, user gradients and item gradients, in milliseconds."""
    users_BD = torch.randn(_BATCH, DIM, device=bench.device)
    items_VD = torch.randn(bench.data.items, DIM, device=bench.device)
    grad_BV = torch.randn(_BATCH, bench.data.items, device=bench.device)
    scores_BV, grad_BD, grad_VD = torch.empty_like(grad_BV), torch.empty_like(users_BD), torch.empty_like(items_VD)
    start = now(bench.device)
    torch.mm(users_BD, items_VD.T, out=scores_BV)
    torch.mm(grad_BV, items_VD, out=grad_BD)
    torch.mm(grad_BV.T, users_BD, out=grad_VD)
    return (now(bench.device) - start) * 1e3


def train(bench: Bench) -> Training:
    """Train once, through Ray, on the thin slice, where steps are the same and epochs short."""
    return bench.train("exact softmax", [*SETTINGS, *ONE_WORKER], 3 if bench.quick else 5, thin=True)


def measure(bench: Bench) -> list[Row]:
    """Interleave the products and a training."""
    products_ms(bench)
    products: list[float] = []
    compared: list[float] = []
    for _ in range(bench.rounds):
        products += (found := bench.undisturbed(lambda: [products_ms(bench) for _ in range(5)]))
        training = train(bench)
        compared.append(statistics.median(training.step_ms) / statistics.median(found))
    rows = [bar_row("exact softmax: three dense products", products, "ms")]
    rows.append(bar_row("exact softmax: step / the products", compared, "x", most=_MOST))
    rows += split_rows("exact softmax", training)
    seconds = statistics.median(training.step_ms) / 1e3
    return rows + bound_rows("exact softmax: step", work(bench), seconds, bench.rates)


def work(bench: Bench) -> Work:
    """Return the least work of a step, which touches all items and the users of the pairs."""
    touched = 2 * 3 * 4 * DIM * (bench.data.items + _BATCH)  # rows and moments, read and written
    return Work(touched, 3.0 * _BATCH * DIM * bench.data.items)
