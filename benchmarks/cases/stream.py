"""Ray Data alone: batches with 64 negatives for each pair, computed ahead, and received without training.

Two streams feed two receivers that only unpack, as in a training with two workers. The rate counts the positives of the
batches that have arrived, each with its 64 negatives drawn, de-duplicated and indexed; the first quarter is left out.
"""

import statistics
import time

import ray
from measure.bench import Bench
from measure.roofline import Work, bound_rows
from report import Row, bar_row

from distrec.data.prepare import prepare
from distrec.sampling.source import BatchSource
from distrec.sampling.stream import stream
from distrec.training.config import load_config

_NEGATIVES, _BATCH, _STREAMS = 64, 8192, 2
_POSITIVES = 12_000_000
_LEAST = {"false": 1.5e6, "true": 0.75e6}


@ray.remote(num_cpus=1)
def receive(source: BatchSource, epochs: int, look_ahead_mib: int) -> list[tuple[float, int]]:
    """Return the time of arrival and the number of pairs of each batch."""
    batches = stream(source, 0, epochs, source.bytes_per_step, look_ahead_mib)
    return [(time.time(), len(batch.user_index_B)) for batch in batches]


def rate(bench: Bench, reject: str) -> float:
    """Return positives a second of both streams, from when each has sent a quarter until the first one ends."""
    settings = [f"sampling.negatives={_NEGATIVES}", "sampling.shared=false", f"sampling.reject={reject}"]
    config = load_config(None, bench.with_data(settings))
    dataset = prepare(config.data)
    # So many that what is computed ahead but not received at the end is a few percent of the total.
    epochs = -(-(_POSITIVES // (4 if bench.quick else 1)) // dataset.manifest.train)
    sources = [BatchSource(dataset, config.sampling, 0, _BATCH, worker, _STREAMS) for worker in range(_STREAMS)]
    arrivals = bench.undisturbed(
        lambda: ray.get([receive.remote(source, epochs, config.train.look_ahead_mib) for source in sources])
    )
    start, end = max(times[len(times) // 4][0] for times in arrivals), min(times[-1][0] for times in arrivals)
    pairs = sum(count for times in arrivals for arrival, count in times if start < arrival <= end)
    return float(pairs) / (end - start)


def measure(bench: Bench) -> list[Row]:
    """Measure without rejection and with exact rejection."""
    rows: list[Row] = []
    for reject, least in _LEAST.items():
        found = [rate(bench, reject) for _ in range(2 if bench.quick else 5)]
        name = f"stream, {'exact' if reject == 'true' else 'no'} rejection"
        rows.append(bar_row(f"{name}: positives", found, "1/s", least=least))
        rows.append(bar_row(f"{name}: draws", [_NEGATIVES * rate for rate in found], "1/s"))
        # The ids of a pair and of its negatives are written once and read once.
        work = Work(2.0 * 4 * (2 + _NEGATIVES) * _BATCH, 0)
        rows += bound_rows(f"{name}: batch", work, _BATCH / statistics.median(found), bench.rates)
    return rows
