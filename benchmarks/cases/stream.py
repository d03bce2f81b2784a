"""Ray Data alone: batches with 64 negatives of each pair's own, computed ahead and received by nobody's trainer.

Two streams feed two receivers that only unpack, as two workers would be fed. Counted are the positives whose batches
have arrived, each with its 64 negatives drawn, de-duplicated and addressed; the first quarter is left out.
"""

import statistics
import time

import ray
from measure.bench import Bench
from measure.floor import Floor, floor_rows
from report import Row, bar_row

from distrec.core.config import load
from distrec.data.prepare import prepare
from distrec.sampling.source import BatchSource
from distrec.sampling.stream.ray import stream
from distrec.training.config import Config

_NEGATIVES, _BATCH, _STREAMS = 64, 8192, 2
_POSITIVES = 12_000_000
_LEAST = {"false": 1.5e6, "true": 0.75e6}


@ray.remote(num_cpus=1)
def receive(source: BatchSource, epochs: int, look_ahead_mib: int) -> list[tuple[float, int]]:
    """When each batch arrived, and its pairs of this worker."""
    batches = stream(source, 0, epochs, source.bytes_per_step, look_ahead_mib)
    return [(time.time(), len(batch.user_index_B)) for batch in batches]


def rate(bench: Bench, reject: str) -> float:
    """Positives a second over both streams, while both run: from when each has given a quarter until one ends."""
    words = [f"data.source={bench.data.whole}", "data.valid_fraction=0", f"data.cache={bench.folder}/prepared"]
    words += [f"sampling.negatives={_NEGATIVES}", "sampling.shared=false", f"sampling.reject={reject}"]
    config = load(Config, None, words)
    dataset = prepare(config.data)
    # So many that what the look-ahead holds at the end is a few hundredths of all.
    epochs = -(-(_POSITIVES // (4 if bench.quick else 1)) // dataset.manifest.train)
    sources = [BatchSource(dataset, config.sampling, 0, _BATCH, worker, _STREAMS) for worker in range(_STREAMS)]
    told = bench.undisturbed(
        lambda: ray.get([receive.remote(source, epochs, config.train.look_ahead_mib) for source in sources])
    )
    start, end = max(times[len(times) // 4][0] for times in told), min(times[-1][0] for times in told)
    return sum(pairs for times in told for at, pairs in times if start < at <= end) / (end - start)


def measure(bench: Bench) -> list[Row]:
    """Without rejection and with exact rejection."""
    rows: list[Row] = []
    for reject, least in _LEAST.items():
        found = [rate(bench, reject) for _ in range(2 if bench.quick else 5)]
        name = f"stream, {'exact' if reject == 'true' else 'no'} rejection"
        rows.append(bar_row(f"{name}: positives", found, "1/s", least=least))
        rows.append(bar_row(f"{name}: draws", [_NEGATIVES * rate for rate in found], "1/s"))
        # Ids of a pair and of its negatives are written once and read once.
        floor = Floor(2.0 * 4 * (2 + _NEGATIVES) * _BATCH, 0)
        rows += floor_rows(f"{name}: batch", floor, _BATCH / statistics.median(found), bench.rates)
    return rows
