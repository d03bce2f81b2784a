"""Run the small size of the studies in configs/studies, one after another, and keep their tables and figures.

    python benchmarks/studies.py                       # all
    python benchmarks/studies.py prism_alpha margin    # some
    python benchmarks/studies.py --size full margin    # hours to days

Writes benchmarks/results/studies/NAME.md and NAME_1.png, ...; the runs lie in runs/studies/, and are not repeated by a
second call. DISTREC_DATA names the folder of ml-100k/, gowalla/, ...
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

from measure.data import DATA_FOLDER

from distrec import UserError, study
from distrec.cli.study import run_line
from distrec.tuning.study_config import Size, load_study

ROOT = Path(__file__).parents[1]
STUDIES, RESULTS, RUNS = ROOT / "configs" / "studies", ROOT / "benchmarks" / "results" / "studies", Path("runs/studies")


def run(name: str, size: Size, parallel: int) -> None:
    """Run one study, and copy its table and figures."""
    file, start = STUDIES / f"{name}.yaml", time.perf_counter()
    config = load_study(file, size)
    overrides = [f"data.source={DATA_FOLDER / config.base['data.source']}", "tracking.enabled=false"]

    def show(event: dict) -> None:
        if event["kind"] == "run":
            print(f"{name}: {run_line(event)}", flush=True)

    found = study(file, overrides, size, RUNS / config.name, parallel, show)
    text = (found.folder / "table.md").read_text()
    for figure in sorted(found.folder.glob("figure_*.png")):
        kept = figure.name.replace("figure", name)
        text = text.replace(f"({figure.name})", f"({kept})")
        shutil.copyfile(figure, RESULTS / kept)
    about = [line.removeprefix("#").strip() for line in file.read_text().splitlines() if line.startswith("#")]
    title, _, rest = text.partition("\n")
    (RESULTS / f"{name}.md").write_text("\n".join([title, "", *about, rest]))
    print(f"{name}: {time.perf_counter() - start:.0f} s; {len(found.failed)} runs failed", flush=True)


def main() -> None:
    known = sorted(file.stem for file in STUDIES.glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=known, metavar="NAME", help=", ".join(known))
    parser.add_argument("--size", choices=["small", "full"], default="small")
    parser.add_argument("--parallel", type=int, default=1, help="runs side by side; 1 for epoch_time")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in known]:
        parser.error(f"no study {', '.join(unknown)}; known: {', '.join(known)}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in given.names:
        try:
            run(name, given.size, 1 if name == "epoch_time" else given.parallel)
        except UserError as error:  # the others go on
            failed = True
            print(f"{name}: {error}", file=sys.stderr, flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
