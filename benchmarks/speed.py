"""distrec beside its rivals, in one run, on two cores: the rows, their bars, and how far each is from its floor. Where
there is a GPU, trainings and rivals use it, with all cores of the machine, and nothing is held to a bar.

    python benchmarks/speed.py --plot speed.png
    python benchmarks/speed.py --only BPR,ranking --quick
    python benchmarks/speed.py --only job configs/gowalla_mf_ssm.yaml train.batch_size=8192

DISTREC_DATA names the folder that holds gowalla/; without it, data of that size are made. `make bench` installs the
rivals into an environment of their own. A row that misses its bar stays in the table.
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
from cases import bpr, device, exact, job, memory, ranking, softmax, stream, wait, workers
from measure.bench import CORES, DIM, Bench, two_cores
from measure.floor import rate_rows
from report import Row, arguments, heading, table, write

from distrec.tracking.meters import PARTS
from distrec.training.driver import ray_running

CASES: dict[str, Callable[[Bench], list[Row]]] = {
    bpr.NAME: bpr.measure,
    softmax.NAME: softmax.measure,
    softmax.SHARED: softmax.measure_shared,
    "exact": exact.measure,
    "wait": wait.measure,
    "workers": workers.measure,
    "ranking": ranking.measure,
    "stream": stream.measure,
    "memory": memory.measure,
    "device": device.measure,
    "job": job.measure,
}
_PATIENCE = "how long a repetition may wait, or be made again, until others leave the machine alone"
_QUICK = ("BPR",)  # unless others are asked for: each training takes 20 seconds to start


def plot(bench: Bench, file: Path) -> None:
    """Shares of the parts of a step, one bar a training."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.5 * len(bench.jobs) + 1.5), layout="constrained")
    took = {name: statistics.median(job.step_ms) for name, job in bench.jobs.items()}
    names, left = [f"{name}: {ms:.3g} ms" for name, ms in took.items()], [0.0] * len(took)
    for part in PARTS:
        widths = [100 * statistics.median(bench.jobs[name].split_ms[part]) / ms for name, ms in took.items()]
        axes.barh(names, widths, left=left, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="% of a step", title="where the time of a step goes")
    figure.legend(loc="outside right center")
    figure.savefig(file)


def measure(bench: Bench, names: Sequence[str], json_file: Path | None) -> None:
    """The cases, which share one Ray, each shown as it ends. Beside a bar stands what others took of the cores."""
    rows: list[Row] = []
    with ray_running(CORES):
        for name in names:
            print(f"{name} ...", file=sys.stderr, flush=True)
            bench.look_at_machine()
            bench.others.clear()
            found = CASES[name](bench)
            note = f"others took {statistics.median(bench.others):.0%}" if bench.others else ""
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
    """The cases that are asked for."""
    if wrong := [name for name in text.split(",") if name not in CASES]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(wrong)}; known: {', '.join(CASES)}")
    return text.split(",")


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", metavar="CONFIG | key=value", help="what `--only job` trains")
    parser.add_argument("--only", type=_names, metavar="NAME,NAME", help=f"of {', '.join(CASES)}")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="save the step time by part as a picture")
    parser.add_argument("--rivals", type=Path, metavar="PYTHON", default=Path(".venv-rivals/bin/python"))
    parser.add_argument("--patience", type=float, default=0.0, metavar="SECONDS", help=_PATIENCE)
    given = parser.parse_args()
    two_cores()
    names = given.only or (_QUICK if given.quick else list(CASES))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(given.quick, given.patience, Path(folder), given.rivals.absolute(), tuple(given.words))
        measure(bench, names, given.json)
    if given.plot and bench.jobs:
        plot(bench, given.plot)


if __name__ == "__main__":
    main()
