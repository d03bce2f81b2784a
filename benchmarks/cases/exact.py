"""Exact softmax over all items, batch 1024, beside the three dense products that it cannot avoid."""

import statistics

import torch
from measure.bench import DIM, Bench
from measure.floor import Floor, floor_rows, now
from measure.job import Job
from report import Row, bar_row

from cases.softmax import ALONE

_BATCH, _MOST = 1024, 2.5
WORDS = ["loss.name=softmax", "model.similarity=dot", f"train.batch_size={_BATCH}"]


def products_ms(bench: Bench) -> float:
    """Scores, gradient of the users, gradient of the items: milliseconds of the three together."""
    users_BD = torch.randn(_BATCH, DIM, device=bench.device)
    items_VD = torch.randn(bench.data.items, DIM, device=bench.device)
    grad_BV = torch.randn(_BATCH, bench.data.items, device=bench.device)
    scores_BV, grad_BD, grad_VD = torch.empty_like(grad_BV), torch.empty_like(users_BD), torch.empty_like(items_VD)
    began = now(bench.device)
    torch.mm(users_BD, items_VD.T, out=scores_BV)
    torch.mm(grad_BV, items_VD, out=grad_BD)
    torch.mm(grad_BV.T, users_BD, out=grad_VD)
    return (now(bench.device) - began) * 1e3


def train(bench: Bench) -> Job:
    """Once, through Ray, on the thin slice: steps are the same there, epochs short."""
    return bench.train("exact softmax", [*WORDS, *ALONE], 3 if bench.quick else 5, thin=True)


def measure(bench: Bench) -> list[Row]:
    """Takes turns: products, a training of ours."""
    products_ms(bench)
    products: list[float] = []
    compared: list[float] = []
    for _ in range(bench.rounds):
        products += (found := bench.undisturbed(lambda: [products_ms(bench) for _ in range(5)]))
        job = train(bench)
        compared.append(statistics.median(job.step_ms) / statistics.median(found))
    rows = [bar_row("exact softmax: three dense products", products, "ms")]
    rows.append(bar_row("exact softmax: step / the products", compared, "x", most=_MOST))
    rows.append(bar_row("exact softmax: step", job.step_ms, "ms"))
    rows += [bar_row(f"exact softmax:   {part}", values, "ms") for part, values in job.split_ms.items()]
    return rows + floor_rows("exact softmax: step", floor(bench), statistics.median(job.step_ms) / 1e3, bench.rates)


def floor(bench: Bench) -> Floor:
    """All items and the users of the pairs."""
    touched = 2 * 3 * 4 * DIM * (bench.data.items + _BATCH)  # rows and moments, read and written
    return Floor(touched, 3.0 * _BATCH * DIM * bench.data.items)
