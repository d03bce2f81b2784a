"""BPR with one negative, batch 8192: a whole training through Ray beside RecBole's and implicit's epochs."""

import statistics

from measure.bench import Bench
from measure.job import Job
from measure.rows import job_rows
from report import Row, bar_row, ratios

NAME = "BPR"
WORDS = ["loss.name=bpr", "model.similarity=dot", "sampling.negatives=1", "sampling.shared=false"]
# The rivals reject known positives too. One thread of torch: the stream works on the other core.
WORDS += ["sampling.reject=true", "train.batch_size=8192", "train.workers=1", "train.threads=1"]


def train(bench: Bench) -> Job:
    """Once, through Ray."""
    return bench.train(NAME, WORDS, 5 if bench.quick else 10)


def measure(bench: Bench) -> list[Row]:
    """Takes turns: epochs of RecBole, of implicit, and a training of ours."""
    found: dict[str, list[list[float]]] = {"distrec": [], "RecBole": [], "implicit": []}  # by round, then by epoch
    with bench.rival("recbole_bpr.py") as recbole, bench.rival("implicit_bpr.py") as implicit:
        recbole.seconds(), implicit.seconds()  # the first ones warm up
        for _ in range(bench.rounds):
            for name, rival in (("RecBole", recbole), ("implicit", implicit)):
                found[name].append([bench.undisturbed(rival.seconds) for _ in range(2 if bench.quick else 3)])
            found["distrec"].append((job := train(bench)).epoch_s)
        versions = recbole.versions | implicit.versions
    rows = [bar_row(f"BPR: {who}, epoch", sum(rounds, []), "s", packages=versions) for who, rounds in found.items()]
    medians = {who: [statistics.median(epochs) for epochs in rounds] for who, rounds in found.items()}
    for who, most in (("RecBole", 0.5), ("implicit", None)):
        against = ratios(medians["distrec"], medians[who])
        rows.append(bar_row(f"BPR: distrec / {who}", against, "x", most=most, packages=versions))
    return rows + job_rows("BPR", job, bench.rates)
