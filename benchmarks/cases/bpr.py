"""BPR with one negative, batch 8192: a whole training through Ray beside epochs of RecBole and implicit."""

import statistics

from measure.bench import Bench
from measure.training import Training
from measure.training_rows import training_rows
from report import Row, bar_row, ratios

NAME = "BPR"
SETTINGS = ["loss.name=bpr", "model.similarity=dot", "sampling.negatives=1", "sampling.shared=false"]
# The rivals reject known positives too. One thread for torch: the stream uses the other core.
SETTINGS += ["sampling.reject=true", "train.batch_size=8192", "train.workers=1", "train.threads=1"]


def train(bench: Bench) -> Training:
    """Train once, through Ray."""
    return bench.train(NAME, SETTINGS, 5 if bench.quick else 10)


def measure(bench: Bench) -> list[Row]:
    """Interleave epochs of RecBole, epochs of implicit, and a training."""
    found: dict[str, list[list[float]]] = {"distrec": [], "RecBole": [], "implicit": []}  # by round, then by epoch
    with bench.rival("recbole_training.py", "BPR", "8192") as recbole, bench.rival("implicit_bpr.py") as implicit:
        recbole.seconds(), implicit.seconds()  # warm-up
        for _ in range(bench.rounds):
            for name, rival in (("RecBole", recbole), ("implicit", implicit)):
                found[name].append([bench.undisturbed(rival.seconds) for _ in range(2 if bench.quick else 3)])
            found["distrec"].append((training := train(bench)).epoch_s)
        versions = recbole.versions | implicit.versions
    rows = [bar_row(f"BPR: {name}, epoch", sum(rounds, []), "s", packages=versions) for name, rounds in found.items()]
    medians = {name: [statistics.median(epochs) for epochs in rounds] for name, rounds in found.items()}
    for name, most in (("RecBole", 0.5), ("implicit", None)):
        against = ratios(medians["distrec"], medians[name])
        rows.append(bar_row(f"BPR: distrec / {name}", against, "x", most=most, packages=versions))
    return rows + training_rows("BPR", training, bench.rates)
