"""Memory of a worker beside its shard and its optimizer's state, in real trainings on Gowalla."""

from measure.bench import DIM, Bench
from report import Row

from cases import bpr, sampled_softmax

_MOST_MIB = 600.0
_STATE = 2  # arrays of Adam, of the shape of the tables
_TRAININGS = {
    bpr.NAME: ("BPR", bpr.train),
    sampled_softmax.NAME: ("softmax, 800 a pair", sampled_softmax.train),
    sampled_softmax.SHARED: ("softmax, 800 shared", sampled_softmax.train_shared),
}


def measure(bench: Bench) -> list[Row]:
    """Report earlier trainings of this run, or train if there were none. The one worker of each owns all rows."""
    shard = (bench.data.users + bench.data.items) * DIM * 4 / 2**20
    rows = [Row("memory: lower bound", shard * (1 + _STATE), "MiB", "shard and optimizer state")]
    for key, (name, train) in _TRAININGS.items():
        memory = (bench.trainings.get(key) or train(bench)).memory
        if memory is None:
            continue  # no /proc on this system
        more = memory.pss - shard * (1 + _STATE)
        detail = f"PSS {memory.pss:.0f}, RSS {memory.rss:.0f}, USS {memory.uss:.0f}"
        rows.append(Row(f"memory, {name}: beside these", more, "MiB", detail, f"<= {_MOST_MIB:g}", more <= _MOST_MIB))
    return rows
