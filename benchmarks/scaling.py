"""Scaling study: workers, table size, dimension, negatives and batch against the time of a step by part, bytes on the
wire and memory; and the cost model of `distrec plan`, fitted to its points.

    python benchmarks/scaling.py measure points.json              # some 10 minutes on two idle cores; --quick: 2
    python benchmarks/scaling.py fit points.json                  # error on points held out, bounds, no file written
    python benchmarks/scaling.py fit points.json --costs costs.json --name cpu   # constants for distrec plan --costs
    python benchmarks/scaling.py table points.json                # the points as Markdown

Settings are drawn at random, so that every factor varies with the others held free. One point in four is held out. On a
machine with a GPU, one worker is measured there, as a whole step.
"""

import argparse
import json
import random
import statistics
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from measure.step_point import BUCKETS, Point, measure, prepare_shape, temporary
from report import hardware
from scipy.optimize import nnls

from distrec.tracking.environment import versions
from distrec.tracking.result_table import markdown_table
from distrec.training.config import load_config
from distrec.training.planning.cost_model import STREAM, Terms, counts, predicted
from distrec.training.planning.estimate import Plan
from distrec.training.planning.sizes import Sizes

SHAPES = [
    (6_000, 4_000, 200_000),
    (30_000, 40_000, 800_000),
    (300_000, 200_000, 2_000_000),
    (1_500_000, 1_000_000, 4_000_000),
]
KINDS = ("own", "own", "shared", "shared", "bpr", "softmax", "lightgcn")
_HELD_OUT = 4  # one point in so many
_MOST = 1e8  # multiply-adds of a step with items of its own; of matrix products 30 times as many
Counted = tuple[Terms, dict[str, Any]]
"""Counts of a step, and its measured figures."""
# Of a machine whose parts are not known, as a GPU computes beside its host: the step is fitted as a whole.
_WHOLE = {"compute": ("step", "multiply-adds, own items", "multiply-adds, matrix products"), "look_up": ("values",)}


def draw_points(number: int, seed: int, quick: bool) -> list[Point]:
    """Return random settings whose steps take less than a second or so."""
    draw, points = random.Random(seed), []
    while len(points) < number:
        kind, shape = draw.choice(KINDS), draw.choice(SHAPES[:2] if quick else SHAPES)
        dim, batch, n = draw.choice((16, 32, 64, 128, 256)), 2 ** draw.randint(8, 14), 2 ** draw.randint(2, 10)
        rule = draw.choice(("lazy_adam", "lazy_adam", "rowwise_adagrad"))
        workers = 1 if torch.cuda.is_available() else draw.choice((1, 1, 2))
        settings = {
            "own": ["sampling.shared=false", f"sampling.negatives={n}"],
            "shared": [f"sampling.negatives={n}"],
            "bpr": ["loss.name=bpr", "model.similarity=dot", "sampling.shared=false", "sampling.negatives=1"],
            "softmax": ["loss.name=softmax"],
            "lightgcn": [
                "model.name=lightgcn",
                "model.layers=2",
                "loss.name=bpr",
                "sampling.negatives=1",
                "sampling.shared=false",
            ],
        }[kind]
        point = Point(
            shape, workers, (*settings, f"model.dim={dim}", f"train.batch_size={batch}", f"optim.rule={rule}")
        )
        work = counts_of(point)["compute"]
        heavy = work["multiply-adds, own items"] + work["multiply-adds, matrix products"] / 30 + work["edges"] / 4
        large = shape[0] + shape[1] > 1e5 and kind in ("softmax", "lightgcn")
        if heavy <= _MOST / (10 if quick else 1) and not large and work["values"] < 2e8:
            points.append(point)
    return points


def _config_and_sizes(point: Point) -> tuple[Any, Sizes]:
    return load_config(None, [*point.settings, f"train.workers={point.workers}"]), Sizes.assumed(*point.shape, BUCKETS)


def counts_of(point: Point) -> Terms:
    """Return the counts of a point's step, as `distrec plan` computes them without data."""
    config, sizes = _config_and_sizes(point)
    return counts(config, sizes, point.workers)


def run(file: Path, number: int, seed: int, quick: bool) -> None:
    """Measure points, and write them after each one."""
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "a core for each worker, one thread"
    known = versions()
    machine = f"{hardware()}, {where}; torch {known['torch']}, numba {known['numba']}; {date.today()}"
    gpu_gib = torch.cuda.get_device_properties(0).total_memory / 2**30 if torch.cuda.is_available() else None
    tree = {"machine": machine, "versions": known, "gpu_gib": gpu_gib, "points": (found := [])}
    with temporary() as folder:
        for k, point in enumerate(draw_points(number, seed, quick)):
            figures = measure(point, prepare_shape(point.shape, Path(folder)))
            found.append({"shape": point.shape, "workers": point.workers, "settings": point.settings, **figures})
            print(f"{k + 1}/{number} {1e3 * figures['step_s']:8.1f} ms  {point}", flush=True)
            file.write_text(json.dumps(tree, indent=1) + "\n")


def _memory_of_steps(plan: Plan) -> float:
    """Return the planned memory of a process that takes steps, and neither evaluates nor has a stream beside it."""
    left_out = ("evaluation", "its interactions", "batches ahead")
    return sum(part.bytes for part in plan.memory if part.location in ("device", "host") and part.name not in left_out)


def read(file: Path) -> tuple[dict[str, Any], list[Counted]]:
    """Return the content of a file, and the counts and figures of each point."""
    tree = json.loads(file.read_text())
    return tree, [(counts_of(_point_of(row)), row) for row in tree["points"]]


def _point_of(row: dict[str, Any]) -> Point:
    return Point(tuple(row["shape"]), row["workers"], tuple(row["settings"]))


def fit(points: Sequence[Counted]) -> Terms:
    """Return the constants by non-negative least squares of relative errors."""
    if "parts" not in points[0][1]:
        return _fit_whole(points)
    constants: Terms = {}
    for part, terms in points[0][0].items():
        seconds = [row["stream_s"] if part == STREAM else row["parts"][part] for _, row in points]
        constants[part] = _solve(
            [[counted[part][term] for term in terms] for counted, _ in points], seconds, list(terms)
        )
    return constants


def _fit_whole(points: Sequence[Counted]) -> Terms:
    names = [(part, term) for part, terms in _WHOLE.items() for term in terms]
    rows = [[counted[part][term] for part, term in names] for counted, _ in points]
    drawn = [(counted[STREAM], row) for counted, row in points if "stream_s" in row]
    solved = _solve(rows, [row["step_s"] for _, row in points], [f"{part}/{term}" for part, term in names])
    constants: Terms = {part: {} for part in _WHOLE}
    for name, value in solved.items():
        part, _, term = name.partition("/")
        constants[part][term] = value
    stream = _solve([[counted["draws"]] for counted, _ in drawn], [row["stream_s"] for _, row in drawn], ["draws"])
    return constants | ({STREAM: stream} if stream else {})


def _solve(rows: Sequence[Sequence[float]], seconds: Sequence[float], names: Sequence[str]) -> dict[str, float]:
    """Return non-negative constants, by name, that minimise the squares of predicted over measured less 1."""
    used = [k for k, second in enumerate(seconds) if second > 1e-7]  # one worker exchanges nothing
    if not used:
        return {}
    matrix = np.array([rows[k] for k in used]) / np.array([seconds[k] for k in used])[:, None]
    scale = np.maximum(np.abs(matrix).max(0), 1e-300)  # of the columns: counts range over ten decades
    found, _ = nnls(matrix / scale, np.ones(len(used)))
    return {name: float(f"{value:.4g}") for name, value in zip(names, found / scale, strict=True) if value > 0}


def errors(constants: Terms, points: Sequence[Counted]) -> list[float]:
    """Return the relative errors of the predicted steps, without what a step waits for batches."""
    found = []
    for counted, row in points:
        step = {part: value for part, value in predicted(constants, counted).items() if part != STREAM}
        measured = sum(row["parts"].values()) if "parts" in row else row["step_s"]
        found.append(sum(step.values()) / measured - 1)
    return found


def held_out_errors(points: Sequence[Counted]) -> list[float]:
    """Return the errors on the points held out; none if there are too few to hold any out."""
    if len(points) < 3 * _HELD_OUT:
        return []
    kept = [point for k, point in enumerate(points) if k % _HELD_OUT]
    return errors(fit(kept), points[::_HELD_OUT])


def report_fit(file: Path, costs: Path | None, name: str) -> None:
    """Print the constants and errors of a fit; add them to a file of costs, if one is given."""
    tree, points = read(file)
    constants, found = fit(points), {}
    for part, terms in constants.items():
        print(f"{part:10} " + ", ".join(f"{term} {value:.3g} s" for term, value in terms.items()))
    for what, values in (("fit", errors(constants, points)), ("held out", held_out_errors(points))):
        size = [abs(error) for error in values]
        if size:
            found[what] = {"points": len(size), "median": statistics.median(size), "largest": max(size)}
            within = statistics.mean(error <= 0.25 for error in size)
            print(f"{what}: {_percent(found[what])}; {within:.0%} of {len(size)} steps within 25 %")
    if costs:
        entry = {"origin": tree["machine"], "device": "cpu" if "parts" in points[0][1] else "gpu"}
        entry |= {"memory_gib": tree.get("gpu_gib"), "exchange_measured": any(row["workers"] > 1 for _, row in points)}
        entry |= {"constants": constants, "held_out": found.get("held out")}
        known = json.loads(costs.read_text()) if costs.exists() else {}
        costs.write_text(json.dumps(known | {name: entry}, indent=1) + "\n")


def _percent(error: dict[str, float]) -> str:
    return f"error {error['median']:.1%} (median), {error['largest']:.1%} (largest)"


def report_table(file: Path) -> None:
    """Print the points as a Markdown table, with what is planned of traffic and memory over what was measured."""
    tree, points = read(file)
    constants, rows = fit(points), []
    for (_, row), error in zip(points, errors(constants, points), strict=True):
        parts = {f"{part}, ms": 1e3 * value for part, value in row.get("parts", {}).items()}
        settings = " ".join(s.partition(".")[2] for s in row["settings"])
        shape = "/".join(f"{size:,}" for size in row["shape"])
        rows.append(
            {
                "shape": shape,
                "W": row["workers"],
                "settings": settings,
                "step, ms": 1e3 * row["step_s"],
                **parts,
                "model": f"{error:+.0%}",
                **(_beside_plan(row) if "memory" in row else {}),
            }
        )
    print(f"{tree['machine']}\n\n{markdown_table(rows)}")


def _beside_plan(row: dict[str, Any]) -> dict[str, float | None]:
    """Return measured traffic and memory of a point, and what is planned over it."""
    plan = Plan(*_config_and_sizes(_point_of(row)))
    sent, memory = row["sent_bytes"], row["memory"]
    return {
        "sent, MB": sent / 1e6,
        "plan / sent": sum(c.bytes for c in plan.traffic) / sent if sent else None,
        "memory, MiB": memory / 2**20,
        "plan / memory": _memory_of_steps(plan) / memory,
    }


def main() -> None:
    """Run a command of the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("measure", "fit", "table"))
    parser.add_argument("points", type=Path, metavar="FILE", help="the measured points, JSON")
    parser.add_argument("--number", type=int, help="points to measure (default: 64; with --quick 12)")
    parser.add_argument("--seed", type=int, default=0, help="of the settings")
    parser.add_argument("--quick", action="store_true", help="few small points")
    parser.add_argument("--costs", type=Path, metavar="FILE", help="write the constants to this file")
    parser.add_argument("--name", default="cpu", help="their name in it")
    given = parser.parse_args()
    if given.command == "measure":
        run(given.points, given.number or (12 if given.quick else 64), given.seed, given.quick)
    elif given.command == "fit":
        report_fit(given.points, given.costs, given.name)
    else:
        report_table(given.points)


if __name__ == "__main__":
    main()
