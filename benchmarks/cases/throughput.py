"""Throughput of any training (`configs/gowalla_mf_ssm.yaml` by default), by number of workers; one worker a GPU."""

from pathlib import Path

import torch
from measure.bench import CORES, Bench
from measure.training_rows import training_rows
from report import Row, bar_row

_CONFIG = Path(__file__).parents[2] / "configs" / "gowalla_mf_ssm.yaml"


def measure(bench: Bench) -> list[Row]:
    """Train with each number of workers, the cores divided among them."""
    rows: list[Row] = []
    counts = [1, CORES]
    if bench.device.type == "cuda":
        counts = [torch.cuda.device_count()]
    for workers in counts[-1:] if bench.quick else counts:
        settings = [f"train.workers={workers}", f"train.threads={CORES // workers}"]
        name = f"job, {workers} worker{'s' * (workers > 1)}"
        training = bench.train(name, [*(bench.settings or [str(_CONFIG)]), *settings], 3 if bench.quick else 8)
        rates = [training.interactions / seconds for seconds in training.epoch_s]
        rows.append(bar_row(f"{name}: interactions", rates, "1/s"))
        rows += training_rows(name, training, bench.rates)
        rows.append(Row(f"{name}: first batch", training.first_batch_s, "s"))
        rows.append(Row(f"{name}: start to end, without the epochs", training.overhead_s, "s"))
    return rows
