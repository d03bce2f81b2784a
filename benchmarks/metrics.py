"""Cost of the metrics beside the top-K alone, and their agreement with trec_eval, on a prepared data set's test part.

    python benchmarks/metrics.py data.source=gowalla

Rows are random with norms by popularity, so that lists overlap as those of a trained model do. Each evaluation is
repeated in turn, on one thread; the ratio is of the medians of the CPU seconds. The agreement is that of every metric
of every user with ir-measures, in which trec_eval computes them (`--no-agreement` leaves it out).
"""

import argparse
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from report import Row, bar_row, report

from distrec.data.dataset import Dataset, Part
from distrec.data.prepare import prepare
from distrec.evaluation import evaluator
from distrec.evaluation.config import EvalConfig
from distrec.evaluation.evaluator import evaluate_part, held_out_pairs
from distrec.evaluation.metrics import METRICS
from distrec.models.base import Scorer
from distrec.sharding.collectives import Exchange
from distrec.sharding.partition import Partition
from distrec.testing.trec_eval import beside_trec_eval
from distrec.training.config import load_config

DIM, K, MOST = 64, 20, 1.3
EXCHANGE = Exchange(torch.device("cpu"))
CASES = {
    "top-K alone": None,
    "recall and ndcg": EvalConfig(k=(K,), diagnostics=False),
    "and diagnostics": EvalConfig(k=(K,)),
    "all metrics": EvalConfig(k=(10, K), metrics=("all",), strata=True),
    "and 1,000 resamples": EvalConfig(k=(10, K), metrics=("all",), strata=True, bootstrap=1000),
}


class Popular(Scorer):
    """Random rows, longer for popular items."""

    def __init__(self, dataset: Dataset) -> None:
        draws, m = torch.Generator().manual_seed(0), dataset.manifest
        self.users, items = (torch.randn(n, DIM, generator=draws) for n in (m.users, m.items))
        self.users[:, 0], items[:, 0] = 10, 2  # a direction that all share: popular items score high for all users
        self.items = items * torch.from_numpy(np.log(dataset.item_degrees() + 2.0)).float()[:, None]

    def representations(self, users: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return self.users[torch.from_numpy(users)], self.items


def lists(dataset: Dataset, scorer: Popular) -> np.ndarray:
    """Return the lists of all users of the test part."""
    evaluation = evaluator._Evaluation(scorer, dataset, Part.TEST, EvalConfig(k=(K,)), EXCHANGE, lambda share: None)
    return evaluation._rank(scorer.representations(evaluation.users), "dot")


def agreement(dataset: Dataset, ranked_UK: np.ndarray) -> list[Row]:
    """Return the mean of all values and the largest difference of any metric of any user from that of trec_eval."""
    partition = Partition(dataset.manifest.users, dataset.manifest.buckets, 1)
    held_out, _, users = held_out_pairs(dataset, Part.TEST, partition, 0)
    compared = beside_trec_eval(ranked_UK, held_out.indptr(len(users)), held_out.item, (K,))
    pairs = np.array([(ours, theirs) for _, ours, theirs in compared])
    assert len(pairs) == len(METRICS) * len(users)
    largest, packages = float(np.abs(np.diff(pairs)).max()), {"ir-measures": version("ir-measures")}
    return [
        bar_row("mean of all users and metrics", [float(pairs.mean())], "", packages=packages),
        bar_row("largest difference from trec_eval", [largest], "", most=1e-9, packages=packages),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-agreement", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    parser.add_argument("words", nargs="+", metavar="key=value")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = prepare(load_config(None, arguments.words).data, log=print)
    scorer, seconds = Popular(dataset), {name: [] for name in CASES}
    ranked_UK = lists(dataset, scorer)
    for _ in range(arguments.repeats):
        for name, config in CASES.items():
            start = time.process_time()
            if config is None:
                lists(dataset, scorer)
            else:
                evaluate_part(scorer, dataset, Part.TEST, config, EXCHANGE)
            seconds[name].append(time.process_time() - start)
            print(f"{name}: {seconds[name][-1]:.2f} s", flush=True)
    rows = [bar_row(name, values, "CPU s") for name, values in seconds.items()]
    median = {name: statistics.median(values) for name, values in seconds.items()}
    for name in list(CASES)[1:]:
        most = MOST if name == "all metrics" else None
        rows.append(bar_row(f"{name}, over the top-K alone", [median[name] / median["top-K alone"]], "x", most=most))
    if not arguments.no_agreement:
        rows += agreement(dataset, ranked_UK)
    report(rows, f"Metrics of {len(ranked_UK):,} users, K = {K}, one thread", arguments.json)


if __name__ == "__main__":
    main()
