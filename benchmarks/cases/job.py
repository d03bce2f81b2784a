"""Any training, `configs/gowalla_mf_ssm.yaml` unless another is named, by number of workers; one a GPU."""

from pathlib import Path

import torch
from measure.bench import CORES, Bench
from measure.rows import job_rows
from report import Row, bar_row

_CONFIG = Path(__file__).parents[2] / "configs" / "gowalla_mf_ssm.yaml"


def measure(bench: Bench) -> list[Row]:
    """With as many threads a worker as the cores have for it."""
    rows: list[Row] = []
    counts = [1, CORES]
    if bench.device.type == "cuda":
        counts = [torch.cuda.device_count()]
    for workers in counts[-1:] if bench.quick else counts:
        words = [f"train.workers={workers}", f"train.threads={CORES // workers}"]
        name = f"job, {workers} worker{'s' * (workers > 1)}"
        job = bench.train(name, [*(bench.words or [str(_CONFIG)]), *words], 3 if bench.quick else 8)
        rows.append(bar_row(f"{name}: interactions", [job.interactions / s for s in job.epoch_s], "1/s"))
        rows += job_rows(name, job, bench.rates)
        rows.append(Row(f"{name}: first batch", job.first_batch_s, "s"))
        rows.append(Row(f"{name}: start to end, without the epochs", job.around_s, "s"))
    return rows
