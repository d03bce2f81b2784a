"""The comparison of runs in words and rows: which is better, by how much, how surely, and for which items."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distrec.evaluation.paired_tests import holm
from distrec.evaluation.strata import ITEM_STRATA
from distrec.report.run_data import RunData
from distrec.report.statistics import Difference, paired

_ITEMS = 8  # listed of those with the most hits gained and lost


@dataclass(frozen=True)
class Comparison:
    """Run A, the better one by the main metric, beside run B, over the users that both evaluate."""

    a: RunData
    b: RunData
    metric: str
    differences: dict[str, Difference]
    """By metric, strata included."""
    p: float
    """p-value of the main metric, adjusted for the number of comparisons."""

    @property
    def main(self) -> Difference:
        """The difference of the main metric."""
        return self.differences[self.metric]


def compare(runs: Sequence[RunData], metric: str) -> list[Comparison]:
    """Compare the best run by a metric with each other one that has the same data."""
    best = max(runs, key=lambda run: float(np.mean(run.test.values[metric])))
    found = []
    for other in runs:
        if other is best or fingerprint(other) != fingerprint(best) or other.part != best.part:
            continue
        _, i, j = np.intersect1d(best.test.users, other.test.users, assume_unique=True, return_indices=True)
        common = best.test.values.keys() & other.test.values.keys()
        names = [name for name in best.test.values if name in common]
        found.append((other, {n: paired(best.test.values[n][i], other.test.values[n][j]) for n in names}))
    adjusted = holm([differences[metric].p for _, differences in found])
    return [Comparison(best, other, metric, d, p) for (other, d), p in zip(found, adjusted, strict=True)]


def fingerprint(run: RunData) -> str:
    """Return what tells data sets apart."""
    return run.dataset.manifest.fingerprint


def verdict(found: Comparison) -> list[str]:
    """Return sentences on one comparison: which run, by how much, how surely, for which users and items."""
    d, metric = found.main, title(found.metric)
    a, b = (float(np.mean(run.test.values[found.metric])) for run in (found.a, found.b))
    relative = f" ({100 * (a - b) / b:+.1f}\N{NO-BREAK SPACE}%)" if b > 0 else ""
    certainty = (
        f"The difference is {a - b:+.4f}, 95 % interval {d.low:+.4f} to {d.high:+.4f}, p {p_text(found.p)} (paired "
        f"t-test over {d.users:,} users)."
    )
    if not d.is_clear:
        equals = f"{found.a.name} and {found.b.name} do not differ beyond chance"
        return [f"{equals}: {metric} {a:.4f} and {b:.4f}{relative}.", certainty, _for_which_items(found)]
    equal = d.users - d.better - d.worse
    return [
        f"{found.a.name} is better than {found.b.name}: {metric} {a:.4f} against {b:.4f}{relative}.",
        certainty,
        f"{found.a.name} is better for {d.better:,} users, {found.b.name} for {d.worse:,}; equal for {equal:,}.",
        _for_which_items(found),
    ]


def _for_which_items(found: Comparison) -> str:
    """Return a sentence on the parts of the difference by stratum."""
    parts = {name: found.differences[f"{found.metric}/{name}"] for name in ITEM_STRATA if _has(found, name)}
    if not parts:
        return ""
    lines = [f"{name} items {part.mean:+.4f} ({_who(found, part)})" for name, part in parts.items()]
    main = max(parts, key=lambda name: parts[name].mean)
    return f"The difference by the popularity of the items that are hit: {', '.join(lines)}. Most of it: {main} items."


def _has(found: Comparison, stratum: str) -> bool:
    return f"{found.metric}/{stratum}" in found.differences


def _who(found: Comparison, part: Difference) -> str:
    if not part.is_clear:
        return "no difference beyond chance"
    return f"{found.a.name if part.mean > 0 else found.b.name} is better"


def item_rows(found: Comparison) -> list[tuple[str, int, int, int, int]]:
    """Return (id, training interactions, held-out users, hits of A, hits of B) of the items whose hits differ most."""
    gained_V = found.a.test.hits_V - found.b.test.hits_V
    order = np.argsort(-gained_V, kind="stable")
    chosen = [*order[:_ITEMS][gained_V[order[:_ITEMS]] > 0], *order[::-1][:_ITEMS][gained_V[order[::-1][:_ITEMS]] < 0]]
    ids, degree_V = found.a.dataset.item_ids(), found.a.degrees["items"]
    return [
        (
            str(ids[int(item)]),
            int(degree_V[item]),
            int(found.a.test.held_out_V[item]),
            int(found.a.test.hits_V[item]),
            int(found.b.test.hits_V[item]),
        )
        for item in chosen
    ]


def p_text(p: float) -> str:
    """Return a p-value with its sign, as `= 0.02` or `< 0.0001`."""
    return "< 0.0001" if p < 1e-4 else f"= {p:.2g}"


def title(metric: str) -> str:
    """Return a metric as it is written in text: NDCG@20."""
    name, sign, k = metric.partition("@")
    return {"ndcg": "NDCG", "mrr": "MRR", "map": "MAP"}.get(name, name.replace("_", " ").capitalize()) + sign + k
