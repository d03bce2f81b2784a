"""Ray Data alone: batches with 64 negatives of each pair's own, computed ahead and received by nobody's trainer.

Two streams feed two receivers that only unpack, as two workers would be fed. Counted are the positives whose batches
have arrived, each with its 64 negatives drawn, de-duplicated and addressed; the first epoch is left out.
"""

import statistics
import time

import ray
from measure.bench import Bench
from measure.floor import Floor, floor_rows
from report import Row, bar_row

from distrec.config import load
from distrec.data.prepare import prepare
from distrec.data.stream import stream
from distrec.sampling.batches import BatchSource
from distrec.train.config import Config

_NEGATIVES, _BATCH, _STREAMS = 64, 8192, 2
_LEAST = {"false": 1.5e6, "true": 0.75e6}


@ray.remote(num_cpus=1)
def receive(source: BatchSource, epochs: int, look_ahead_mib: int) -> tuple[list[float], int]:
    """When each epoch's last batch had arrived, and the pairs of this worker in an epoch."""
    ends, pairs = [0.0] * epochs, [0] * epochs
    for batch in stream(source, 0, epochs, source.bytes_per_step, look_ahead_mib):
        ends[batch.epoch] = time.time()
        pairs[batch.epoch] += len(batch.user_at_B)
    return ends, pairs[0]


def rates(bench: Bench, reject: str) -> list[float]:
    """Positives a second in each epoch after the first, over all streams."""
    words = [f"data.source={bench.data.whole}", "data.valid_fraction=0", f"data.cache={bench.folder}/prepared"]
    words += [f"sampling.negatives={_NEGATIVES}", "sampling.shared=false", f"sampling.reject={reject}"]
    config = load(Config, None, words)
    dataset, epochs = prepare(config.data), 3 if bench.quick else 6
    sources = [BatchSource(dataset, config.sampling, 0, _BATCH, worker, _STREAMS) for worker in range(_STREAMS)]
    told = bench.undisturbed(
        lambda: ray.get([receive.remote(source, epochs, config.train.look_ahead_mib) for source in sources])
    )
    ends = [max(times) for times in zip(*(ends for ends, _ in told), strict=True)]  # of the slower stream
    pairs = sum(pairs for _, pairs in told)
    return [pairs / (ends[k] - ends[k - 1]) for k in range(1, epochs)]


def measure(bench: Bench) -> list[Row]:
    """Without rejection and with exact rejection."""
    rows: list[Row] = []
    for reject, least in _LEAST.items():
        found = [rate for _ in range(bench.rounds) for rate in rates(bench, reject)]
        name = f"stream, {'exact' if reject == 'true' else 'no'} rejection"
        rows.append(bar_row(f"{name}: positives", found, "1/s", least=least))
        rows.append(bar_row(f"{name}: draws", [_NEGATIVES * rate for rate in found], "1/s"))
        # Ids of a pair and of its negatives are written once and read once.
        floor = Floor(2.0 * 4 * (2 + _NEGATIVES) * _BATCH, 0)
        rows += floor_rows(f"{name}: batch", floor, _BATCH / statistics.median(found), bench.rates)
    return rows
