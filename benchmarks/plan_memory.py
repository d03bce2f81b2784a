"""Memory of a run beside its plan: a training with an evaluation and a checkpoint, on tables of 4 million rows.

    python benchmarks/plan_memory.py                        # some two minutes, 5 GiB
    python benchmarks/plan_memory.py --rows 400000          # a tenth of the rows
    python benchmarks/plan_memory.py optim.rule=rowwise_adagrad model.bfloat16=true

One worker, without Ray, with its stream in a thread; a small training before it loads what is imported late. The figure
is the peak of the process's resident memory beyond what it had then.
"""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from measure.peak_rss import peak_rss
from measure.step_point import Shape, prepare_shape, temporary
from report import Row, report

from distrec.data.prepare import prepare
from distrec.sampling.stream import thread
from distrec.testing.host import FolderHost
from distrec.training.config import load_config
from distrec.training.loop import Job, Loop, make_learner
from distrec.training.planning.estimate import Plan
from distrec.training.planning.sizes import Sizes

_WARM_UP: Shape = (300, 200, 6_000)
_EVALUATED = 200  # users: to rank two million items for two million users takes hours
_SETTINGS = ["train.workers=1", "train.threads=1", "train.stream=thread", "train.epochs=1", "train.batch_size=16384"]
_LARGEST_ERROR = 0.1


class _DiscardingHost(FolderHost):
    """A host that keeps no checkpoint: it has been written by then."""

    def keep(self, folder: Path, epoch: int, best: bool) -> None:
        pass


def measure(settings: list[str], sources: tuple[str, str], folder: str) -> tuple[float, list[tuple[str, float]]]:
    """Return the bytes that a training uses beyond the imports, and the planned parts."""
    torch.set_num_threads(1)
    thread._LOWEST_PRIORITY = 0  # on a busy machine the stream would stand still
    for source in sources:
        before = _reset_peak()
        config = load_config(None, [*settings, f"data.source={source}"])
        dataset = prepare(config.data)
        learner = make_learner(config, dataset, torch.device("cpu"))
        Loop(Job(config, dataset, "thread"), learner, _DiscardingHost(Path(folder))).run()
    plan = Plan(config, Sizes.of(dataset)).memory
    parts = [(part.name, part.bytes) for part in plan if not part.baseline and part.location in ("device", "host")]
    return peak_rss() - before, parts


def _reset_peak() -> int:
    """Set the peak of the resident memory to its present value, and return it."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_rss()


def main() -> None:
    """Measure a run of the given settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the run")
    parser.add_argument("--rows", type=int, default=4_000_000, help="users and items together (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    given = parser.parse_args()
    half = given.rows // 2
    with temporary() as folder:
        sources = tuple(prepare_shape(shape, Path(folder), _EVALUATED) for shape in (_WARM_UP, (half, half, 3 * half)))
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            used, parts = pool.submit(measure, [*_SETTINGS, *given.settings], sources, folder).result()
    rows = [Row(name, needed / 2**20, "MiB") for name, needed in parts]
    planned = sum(needed for _, needed in parts)
    rows += [Row("planned", planned / 2**20, "MiB"), Row("measured beyond the imports", used / 2**20, "MiB")]
    holds = abs(planned / used - 1) <= _LARGEST_ERROR
    rows.append(Row("planned / measured", planned / used, "x", bar=f"within {_LARGEST_ERROR:.0%}", holds=holds))
    report(rows, f"{half:,} users, {half:,} items, {' '.join(given.settings) or 'default settings'}", given.json)


if __name__ == "__main__":
    main()
