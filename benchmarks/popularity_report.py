"""Tables, figures and findings of benchmarks/popularity.py, from its lines of results."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from distrec.evaluation.strata import ITEM_STRATA
from distrec.tracking.environment import facts
from distrec.tuning.drawing import new_figure

Training = dict[str, Any]
Group = list[Training]
_FIRST = 5  # epochs

Groups = dict[tuple[str, float], Group]
"""Trainings of one data set and loss by (method, value), one for each seed."""

METRICS = {"whole": "ndcg@20", **{stratum: f"ndcg@20/{stratum}" for stratum in ITEM_STRATA}}
COLORS = {"whole": "#444444", "popular": "#c44e52", "neutral": "#dd8452", "unpopular": "#4c72b0"}


def write_report(results: Path) -> None:
    """Write `README.md` and the figures beside the results."""
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    sets: dict[tuple[str, str], Groups] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        sets[line["data"], line["loss"]][line["method"], line["value"]].append(line)
    about = facts("python", "torch", "numpy", "numba")
    text = [f"# Popularity: {len(lines)} trainings of benchmarks/popularity.py", ""]
    text += ["; ".join(f"{name} {value}" for name, value in about.items()), ""]
    for (data, loss), groups in sorted(sets.items()):
        text += [f"## {data}, {loss}", "", *table(groups), "", *findings(groups), ""]
        name = f"{data}_{loss}.png"
        figures(groups, results.parent / name, f"{data}, {loss}")
        text += [f"![NDCG@20 by decay and alpha, validation curves, correlations]({name})", ""]
    (results.parent / "README.md").write_text("\n".join(text))
    print("\n".join(text))


def of(group: Group, value: Callable[[Training], float]) -> list[float]:
    return [value(line) for line in group]


def ndcg(group: Group, name: str = "whole") -> list[float]:
    """Return an NDCG@20 of each training, in percent."""
    return of(group, lambda line: 100 * line["test"][METRICS[name]])


def correlation(group: Group, side: str) -> list[float]:
    return of(group, lambda line: line["test"].get(f"norm_correlation_{side}", float("nan")))


def shown(values: Sequence[float], digits: int = 2) -> str:
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{spread}"


def order(key: tuple[str, float]) -> tuple[int, float]:
    return ["none", "in_batch", "full", "decoupled", "prism"].index(key[0]), key[1]


def table(groups: Groups) -> list[str]:
    """Return a Markdown table of a data set and loss: means over the seeds, with deviations."""
    rows = [
        "| decay or alpha | seeds | NDCG@20, % | popular | neutral | unpopular | unpopular / popular | best epoch "
        "| log-degree/norm: items | users |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key in sorted(groups, key=order):
        group = groups[key]
        ratio = [
            u / p if p else float("nan") for u, p in zip(ndcg(group, "unpopular"), ndcg(group, "popular"), strict=True)
        ]
        cells = [f"{key[0]} {key[1]:g}" if key[0] != "none" else "none", str(len(group))]
        cells += [shown(ndcg(group, name)) for name in METRICS]
        cells += [shown(ratio), shown(of(group, lambda line: line["best_epoch"]), 0)]
        cells += [shown(correlation(group, side)) for side in ("items", "users")]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def findings(groups: Groups) -> list[str]:
    """Return what the paper says, each with the figures, and whether they agree within two deviations."""
    none = groups.get(("none", 0.0))
    full, batch, prism = (_best(groups, method) for method in ("full", "in_batch", "prism"))
    if not (none and full and batch and prism):
        return ["(incomplete: none, full, in_batch and prism are needed)"]
    same = all(_near(groups[key], none) for key in groups if key[0] == "in_batch")
    beats = _above(full, none) and _above(full, batch)
    alpha_1 = groups.get(("prism", 1.0), prism)
    epochs = [fmean(of(group, lambda line: line["best_epoch"])) for group in (full, alpha_1)]
    near, items = (
        _near(prism, full) or _above(prism, full),
        [fmean(correlation(g, "items")) for g in (none, batch, full)],
    )
    return [
        f"- Decay in the batch equals none (Figure 3): {_says(same)}; best {shown(ndcg(batch))}, none "
        f"{shown(ndcg(none))}.",
        f"- Full decay beats both (Figure 1): {_says(beats)}; best {shown(ndcg(full))} with {full[0]['value']:g}.",
        f"- PRISM is at least equal to full decay (Table 1): {_says(near)}; {shown(ndcg(prism))} with alpha "
        f"{prism[0]['value']:g}, at alpha 1 {shown(ndcg(alpha_1))}.",
        f"- PRISM with alpha 1 needs fewer epochs (Figure 4): {_says(epochs[1] < epochs[0])}; {epochs[1]:.0f} beside "
        f"{epochs[0]:.0f}.",
        f"- Norms of item rows follow popularity under full decay alone (Figures 2 and 3): "
        f"{_says(items[2] > max(items[:2]) + 0.2)}; correlation none {items[0]:.2f}, in batch {items[1]:.2f}, full "
        f"{items[2]:.2f}.",
        *_stopped_at_once(groups),
    ]


def _stopped_at_once(groups: Groups) -> list[str]:
    """Return a line about trainings whose best epoch is one of the first few, if there are any."""
    counts = {name: sum(line["best_epoch"] <= _FIRST for line in group) for name, group in groups.items()}
    named = ", ".join(
        f"{count} of {len(groups[name])} with {name[0]} {name[1]:g}" for name, count in counts.items() if count
    )
    if not named:
        return []
    return [
        f"- Best epoch among the first {_FIRST}, so that the patience of 10 ends the training: {named}. Long rows turn "
        "slowly under Adam: NDCG@20 by cosine rises from the start, by dot product only after more than 10 epochs."
    ]


def _says(agrees: bool) -> str:
    return "agrees" if agrees else "**does not agree**"


def _best(groups: Groups, method: str) -> Group:
    """Return the group of a method with the best mean NDCG@20 on the validation part, [] if there is none."""
    own = [group for (name, _), group in groups.items() if name == method]
    return max(own, key=lambda group: fmean(of(group, lambda line: line["valid_ndcg"])), default=[])


def _band(one: Group, other: Group) -> float:
    """Return two deviations of the difference of the means of two groups; 1 % of the mean with one seed."""
    if min(len(one), len(other)) < 2:
        return 0.01 * fmean(ndcg(other))
    return 2 * sum(stdev(ndcg(group)) ** 2 / len(group) for group in (one, other)) ** 0.5


def _near(one: Group, other: Group) -> bool:
    return abs(fmean(ndcg(one)) - fmean(ndcg(other))) <= _band(one, other)


def _above(one: Group, other: Group) -> bool:
    return fmean(ndcg(one)) - fmean(ndcg(other)) > _band(one, other)


def figures(groups: Groups, path: Path, title: str) -> None:
    """Draw NDCG@20 by decay (Figures 1 and 3) and by alpha (4 and 5), validation curves (6), and correlations."""
    figure = new_figure(15, 8)
    axes = figure.subplots(2, 3)
    figure.suptitle(title)
    for axis, (method, name, first) in zip(
        axes.flat,
        [
            ("full", "full decay, l2", True),
            ("in_batch", "decay in the batch, l2", True),
            ("decoupled", "full decay, decoupled: lr * strength", True),
            ("prism", "PRISM: alpha", False),
        ],
        strict=False,
    ):
        _by_value(axis, groups, method, with_none=first)
        axis.set(title=f"NDCG@20, test, {name}", ylabel="NDCG@20, %", ylim=(0, None))
    _curves(axes.flat[4], groups)
    _correlations(axes.flat[5], groups)
    figure.savefig(path, dpi=80)


def _by_value(axis: Any, groups: Groups, method: str, with_none: bool) -> None:
    keys = sorted(key for key in groups if key[0] == method)
    keys = [("none", 0.0), *keys] if with_none and ("none", 0.0) in groups else keys
    for name in METRICS:
        values = [ndcg(groups[key], name) for key in keys]
        deviations = [stdev(v) if len(v) > 1 else 0.0 for v in values]
        means = [fmean(v) for v in values]
        axis.errorbar(range(len(keys)), means, deviations, marker="o", capsize=3, color=COLORS[name], label=name)
    axis.set_xticks(range(len(keys)), ["0" if key[0] == "none" else f"{key[1]:g}" for key in keys])
    axis.legend()


def _curves(axis: Any, groups: Groups) -> None:
    for method, color in (("none", "#444444"), ("full", "#c44e52"), ("prism", "#4c72b0")):
        group = _best(groups, method)
        for style, similarity in (("-", "dot"), (":", "cosine")):
            if group:
                curve = [100 * value for value in group[0]["curves"][similarity]]
                axis.plot(range(1, len(curve) + 1), curve, style, color=color, label=f"{method}, {similarity}")
    axis.set(title="NDCG@20, validation, first seed", xlabel="epoch", ylabel="NDCG@20, %")
    axis.legend()


def _correlations(axis: Any, groups: Groups) -> None:
    keys = sorted(groups, key=order)
    for side, marker in (("items", "o"), ("users", "x")):
        axis.plot([fmean(correlation(groups[key], side)) for key in keys], range(len(keys)), marker, label=side)
    axis.set_yticks(range(len(keys)), [f"{name} {value:g}" for name, value in keys])
    axis.set(title="Correlation: log(degree + 2), norm of row", xlim=(-1.05, 1.05))
    axis.axvline(0, color="#bbbbbb", zorder=0)
    axis.legend()
