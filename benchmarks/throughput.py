"""Interactions a second of whole trainings through Ray, and where the time of a step goes, by number of workers.

    python benchmarks/throughput.py                                        the default job (planted data)
    python benchmarks/throughput.py configs/gowalla_mf_ssm.yaml data.source=path/to/gowalla

Steady state: the first epoch of each training is left out.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from report import Row, arguments, median_row, report

from distrec.config import load
from distrec.tracking.meters import PARTS
from distrec.train.config import Config
from distrec.train.launch import train


def measure(words: list[str], workers: int, epochs: int) -> list[Row]:
    """Trains once, in a folder that is thrown away."""
    files, overrides = [w for w in words if "=" not in w], [w for w in words if "=" in w]
    with tempfile.TemporaryDirectory() as folder:
        overrides += [f"train.workers={workers}", f"train.epochs={epochs}", f"run.dir={folder}/run"]
        overrides += ["eval.every=0", "tracking.enabled=false"]
        told: list[dict] = []
        result = train(config := load(Config, Path(files[0]) if files else None, overrides), on_event=told.append)
    steady = [event for event in told if event["kind"] == "epoch"][1:]
    steps = -(-result.interactions // config.train.batch_size)
    name = f"{workers} worker{'s' if workers > 1 else ''}"
    rows = [median_row(f"{name}: interactions", [event["interactions_per_s"] for event in steady], "1/s")]
    rows.append(median_row(f"{name}: step", [event["seconds"] / steps * 1e3 for event in steady], "ms"))
    for part in PARTS:
        rows.append(median_row(f"{name}:   {part}", [event["split"][part] / steps * 1e3 for event in steady], "ms"))
    rows.append(Row(f"{name}: first batch", result.timing.first_batch_s, "s"))
    rows.append(Row(f"{name}: start to end, without the epochs", result.timing.total_s - result.timing.train_s, "s"))
    return rows


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", metavar="CONFIG | key=value", help="what to train, as for `distrec train`")
    parser.add_argument("--workers", type=int, nargs="+", default=None, help="numbers of workers (default: 1 2)")
    given = parser.parse_args()
    workers = given.workers or ([2] if given.quick else [1, 2])
    rows = [row for w in workers for row in measure(given.words, w, 3 if given.quick else 8)]
    report(rows, f"distrec train {' '.join(given.words)}", given.json)


if __name__ == "__main__":
    main()
