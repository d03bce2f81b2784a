"""distrec beside its rivals, in one run on two cores: measurements, their bars, and their roofline lower bounds. On a
machine with a GPU, trainings and rivals use it, with all cores, and no bar applies.

    python benchmarks/speed.py --plot speed.png
    python benchmarks/speed.py --only BPR,ranking --quick
    python benchmarks/speed.py --only job configs/gowalla_mf_ssm.yaml train.batch_size=8192

DISTREC_DATA names the folder that holds gowalla/; without it, synthetic data of that size are generated. `make bench`
installs the rivals into an environment of their own. A row that misses its bar stays in the table.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from cases import batch_wait, bpr, device, exact_softmax, memory, ranking, sampled_softmax, stream, throughput, workers
from measure.bench import CORES, DIM, Bench, two_cores
from measure.roofline import rate_rows
from report import Row, add_patience, arguments, heading, table, write

from distrec.tracking.meters import PARTS
from distrec.training.connection import ray_running

CASES: dict[str, Callable[[Bench], list[Row]]] = {
    bpr.NAME: bpr.measure,
    sampled_softmax.NAME: sampled_softmax.measure,
    sampled_softmax.SHARED: sampled_softmax.measure_shared,
    "exact": exact_softmax.measure,
    "wait": batch_wait.measure,
    "workers": workers.measure,
    "ranking": ranking.measure,
    "stream": stream.measure,
    "memory": memory.measure,
    "device": device.measure,
    "job": throughput.measure,
}
_RIVALS = "interpreter of the rivals' environment (default: %(default)s)"
_QUICK = ("BPR",)  # the default of --quick: each training takes 20 seconds to start


def plot(bench: Bench, file: Path) -> None:
    """Save a bar chart of the parts of a step, one bar a training, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.5 * len(bench.trainings) + 1.5), layout="constrained")
    step_ms = {name: statistics.median(training.step_ms) for name, training in bench.trainings.items()}
    names, left = [f"{name}: {ms:.3g} ms" for name, ms in step_ms.items()], [0.0] * len(step_ms)
    for part in PARTS:
        widths = [100 * statistics.median(bench.trainings[name].split_ms[part]) / ms for name, ms in step_ms.items()]
        axes.barh(names, widths, left=left, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="% of a step", title="where the time of a step goes")
    figure.legend(loc="outside right center")
    figure.savefig(file)


def measure(bench: Bench, names: Sequence[str], json_file: Path | None) -> None:
    """Run the cases, which share one Ray, and print each when it ends.

    Rows with a bar also report the share of the cores that other processes used.
    """
    rows: list[Row] = []
    with ray_running(CORES):
        for name in names:
            print(f"{name} ...", file=sys.stderr, flush=True)
            bench.update_rates()
            bench.others.clear()
            found = CASES[name](bench)
            note = f"other processes {statistics.median(bench.others):.0%}" if bench.others else ""
            found = [
                replace(row, spread="; ".join(filter(None, [row.spread, note]))) if row.bar else row for row in found
            ]
            where = f"{CORES} cores"
            if bench.device.type == "cuda":
                where = torch.cuda.get_device_name()
                found = [replace(row, bar="", holds=None) for row in found]  # bars are for two cores
            if not rows:
                print(heading(f"{bench.data.name}, D = {DIM}, {where}", found))
            table(found)
            sys.stdout.flush()
            rows += found
            write(rate_rows(bench.rates) + rows, json_file)
    table(rate_rows(bench.rates))


def _names(text: str) -> list[str]:
    """Parse the argument of --only."""
    if wrong := [name for name in text.split(",") if name not in CASES]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(wrong)}; known: {', '.join(CASES)}")
    return text.split(",")


def main() -> None:
    """Run the benchmark by the command line."""
    parser = arguments("Compare the speed of distrec and its rivals.")
    parser.add_argument("settings", nargs="*", metavar="CONFIG | key=value", help="the training of `--only job`")
    parser.add_argument("--only", type=_names, metavar="NAME,NAME", help=f"cases: {', '.join(CASES)}")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="save the step time by part as a picture")
    parser.add_argument("--rivals", type=Path, metavar="PYTHON", default=Path(".venv-rivals/bin/python"), help=_RIVALS)
    add_patience(parser)
    given = parser.parse_args()
    two_cores()
    names = given.only or (_QUICK if given.quick else list(CASES))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(given.quick, given.patience, Path(folder), given.rivals.absolute(), tuple(given.settings))
        measure(bench, names, given.json)
    if given.plot and bench.trainings:
        plot(bench, given.plot)


if __name__ == "__main__":
    main()
