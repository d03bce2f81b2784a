"""Exact softmax over all items, batch 1024, beside the three dense products that it cannot avoid."""

import statistics
import time

import torch
from measure.bench import DIM, Bench
from measure.floor import Floor, floor_rows
from report import Row, bar_row

from distrec.losses import losses

_BATCH, _MOST = 1024, 2.5
_LOSS = "softmax"
_WORDS = [f"loss.name={_LOSS}", "model.similarity=dot", f"train.batch_size={_BATCH}"]
_WORDS += ["train.workers=1", "train.threads=2"]


def products_ms(bench: Bench) -> float:
    """Scores, gradient of the users, gradient of the items: milliseconds of the three together."""
    users_BD = torch.randn(_BATCH, DIM, device=bench.device)
    items_VD = torch.randn(bench.data.items, DIM, device=bench.device)
    grad_BV = torch.randn(_BATCH, bench.data.items, device=bench.device)
    scores_BV, grad_BD, grad_VD = torch.empty_like(grad_BV), torch.empty_like(users_BD), torch.empty_like(items_VD)
    began = time.perf_counter()
    torch.mm(users_BD, items_VD.T, out=scores_BV)
    torch.mm(grad_BV, items_VD, out=grad_BD)
    torch.mm(grad_BV.T, users_BD, out=grad_VD)
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) * 1e3


def step_ms(bench: Bench) -> list[float] | None:
    """Ours, through Ray, on the thin slice; None as long as distrec has no such loss."""
    if _LOSS not in losses:
        return None
    return bench.train("exact softmax", _WORDS, 2 if bench.quick else 3, thin=True).step_ms


def measure(bench: Bench) -> list[Row]:
    """Takes turns: products, a training of ours."""
    products_ms(bench)
    products: list[float] = []
    compared: list[float] = []
    for _ in range(bench.rounds):
        products += (found := bench.undisturbed(lambda: [products_ms(bench) for _ in range(5)]))
        if ours := step_ms(bench):
            compared.append(statistics.median(ours) / statistics.median(found))
    rows = [bar_row("exact softmax: three dense products", products, "ms")]
    name, bar = "exact softmax: distrec, step / the products", f"<= {_MOST:g}"
    if compared:
        rows.append(bar_row(name, compared, "x", most=_MOST))
    else:
        rows.append(Row(name, None, "x", "distrec has no exact softmax yet", bar, False))
    touched = 2 * 3 * 4 * DIM * (bench.data.items + _BATCH)  # rows and moments, read and written
    floor = Floor(touched, 3.0 * _BATCH * DIM * bench.data.items)
    return rows + floor_rows("exact softmax: products", floor, statistics.median(products) / 1e3, bench.rates)
