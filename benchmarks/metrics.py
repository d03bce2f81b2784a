"""Cost of the metrics beside the top-K alone, and their agreement with trec_eval, on a prepared data set's test part.

    python benchmarks/metrics.py data.source=gowalla

Rows are random with norms by popularity, so that lists overlap as those of a trained model do. Each evaluation is
repeated in turn; the ratio is of the medians. The agreement is that of every metric of every user with ir-measures, in
which trec_eval computes them (`--no-agreement` leaves it out).
"""

import argparse
import statistics
import time

import numpy as np
import torch

from distrec.data.dataset import Dataset, Part
from distrec.data.prepare import prepare
from distrec.evaluation import evaluator
from distrec.evaluation.config import EvalConfig
from distrec.evaluation.evaluator import evaluate_part, held_out_pairs
from distrec.evaluation.metrics import METRICS, user_metrics
from distrec.models.base import Scorer
from distrec.sharding.collectives import Exchange
from distrec.sharding.partition import Partition
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
        draws = torch.Generator().manual_seed(0)
        self.users, items = (
            torch.randn(n, DIM, generator=draws) for n in (dataset.manifest.users, dataset.manifest.items)
        )
        self.items = items * torch.from_numpy(np.log(dataset.item_degrees() + 2.0)).float()[:, None]

    def representations(self, users: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return self.users[torch.from_numpy(users)], self.items


def lists(dataset: Dataset, scorer: Popular) -> np.ndarray:
    """Return the lists of all users of the test part."""
    evaluation = evaluator._Evaluation(scorer, dataset, Part.TEST, EvalConfig(k=(K,)), EXCHANGE, lambda share: None)
    return evaluation._rank(scorer.representations(evaluation.users), "dot")


def disagreement(dataset: Dataset, ranked_UK: np.ndarray) -> float:
    """Return the largest difference of any metric of any user from that of trec_eval."""
    import ir_measures as ir

    names = {"ndcg": ir.nDCG, "recall": ir.R, "precision": ir.P, "hit_rate": ir.Success, "mrr": ir.RR, "map": ir.AP}
    partition = Partition(dataset.manifest.users, dataset.manifest.buckets, 1)
    held_out, _, users = held_out_pairs(dataset, Part.TEST, partition, 0)
    found = user_metrics(ranked_UK, held_out.indptr(len(users)), held_out.item, (K,), tuple(METRICS))
    qrels: dict[str, dict[str, int]] = {}
    for row, item in zip(held_out.row.tolist(), held_out.item.tolist(), strict=True):
        qrels.setdefault(str(row), {})[str(item)] = 1
    run = {str(u): {str(item): -float(r) for r, item in enumerate(row)} for u, row in enumerate(ranked_UK.tolist())}
    of_measure = {str(measure @ K): f"{name}@{K}" for name, measure in names.items()}
    metrics = ir.iter_calc([measure @ K for measure in names.values()], qrels, run)
    return max(abs(found.values[of_measure[str(m.measure)]][int(m.query_id)] - m.value) for m in metrics)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-agreement", action="store_true")
    parser.add_argument("words", nargs="+", metavar="key=value")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = prepare(load_config(None, arguments.words).data, log=print)
    scorer, seconds = Popular(dataset), {name: [] for name in CASES}
    ranked_UK = lists(dataset, scorer)
    for _ in range(arguments.repeats):
        for name, config in CASES.items():
            start = time.perf_counter()
            if config is None:
                lists(dataset, scorer)
            else:
                evaluate_part(scorer, dataset, Part.TEST, config, EXCHANGE)
            seconds[name].append(time.perf_counter() - start)
    base = statistics.median(seconds["top-K alone"])
    for name, values in seconds.items():
        median = statistics.median(values)
        spread = f"{min(values):.3f} to {max(values):.3f}"
        print(f"{name:22} {median:7.3f} s ({spread})  {median / base:5.2f} of the top-K alone")
    ratio = statistics.median(seconds["all metrics"]) / base
    print(f"all metrics: {ratio:.2f}, at most {MOST}: {'met' if ratio <= MOST else 'MISSED'}")
    if not arguments.no_agreement:
        worst = disagreement(dataset, ranked_UK)
        print(f"largest difference from trec_eval: {worst:.2g}, at most 1e-9: {'met' if worst <= 1e-9 else 'MISSED'}")


if __name__ == "__main__":
    main()
