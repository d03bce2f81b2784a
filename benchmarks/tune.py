"""Searches: what Ray Tune adds to the same trainings in one process, and whether a search survives kills.

    python benchmarks/tune.py overhead
    python benchmarks/tune.py kills --kills 5

`overhead` times 12 trainings of two epochs of MovieLens-100k (DISTREC_DATA names the folder that holds ml-100k/;
without it, planted data of its size), one after the other in this process, each on one thread, then a search of the
same 12 trials, then the trainings again. The bar: the search takes at most (the trainings + 2 s a trial) / trials at
once + one start of Ray, which is timed too.

`kills` kills a search with SIGKILL at random moments, resumes it each time, and compares it with an undisturbed one:
each trial ends once, no epoch is trained and recorded twice, and the winner is the same.
"""

import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
import yaml
from measure.data import DATA_FOLDER
from report import Row, arguments, bar_row, median_row, report

from distrec.core.config import parse
from distrec.data.prepare import prepare
from distrec.training.config import Config
from distrec.tuning.config import SearchConfig
from distrec.tuning.folder import SearchFolder
from distrec.tuning.journal import Journal, Records
from distrec.tuning.ray_tune import ray_for_trials
from distrec.tuning.search import Search
from distrec.tuning.space import make_space
from distrec.tuning.trial import run_trial
from distrec.tuning.tuner import run_search

_TRIALS, _EPOCHS, _ALLOWED_S = 12, 2, 2.0
_SPACE = {"optim.lr": {"log_uniform": [1e-3, 1e-1]}, "loss.temperature": {"uniform": [0.05, 0.3]}}
_PLANTED = {"users": 943, "items": 1682, "interactions": 100_000}


def search_config(folder: Path, trials: int, epochs: int) -> SearchConfig:
    """Return a search over `trials` random configurations."""
    source = DATA_FOLDER / "ml-100k"
    real = {"source": str(source), "test_fraction": 0.2}
    data = {"planted": _PLANTED} if not source.exists() else real
    tree = {
        "data": {**data, "cache": str(folder / "prepared")},
        "train": {"workers": 1, "threads": 1, "epochs": epochs},
        "run": {"dir": str(folder / "search")},
        "tune": {"trials": trials, "sampler": "random", "stop": "none", "refit_seeds": 0},
        "space": _SPACE,
    }
    return parse(SearchConfig, tree)


def in_one_process(config: SearchConfig, folder: Path) -> float:
    """Train the trials of a search one after the other. Return the seconds."""
    dataset = prepare(config.data)
    folder.mkdir(parents=True)
    journal = Journal(folder / "journal.jsonl")
    search = Search(config, make_space(config, config.space), SearchFolder(folder), journal)
    search.threads = 1
    torch.set_num_threads(1)
    seconds = 0.0
    while (job := search.next_job()) is not None:
        trial = parse(Config, job.tree)
        start_s = time.perf_counter()
        run_trial(trial, lambda event, name=job.name: search.report(name, event), dataset)
        seconds += time.perf_counter() - start_s
        search.end(job.name, {"reason": "finished"})
    journal.close()
    return seconds


def overhead(rounds: int, trials: int, folder: Path) -> list[Row]:
    """Return the time of a search over what it may take."""
    ratios, alone, searches, starts = [], [], [], []
    for number in range(rounds):
        config = search_config(folder, trials, _EPOCHS)
        prepare(config.data)
        around = [in_one_process(config, folder / f"alone{number}-0")]
        start_s = time.perf_counter()
        with ray_for_trials(config, False, print):
            starts.append(time.perf_counter() - start_s)
        events: list[dict[str, Any]] = []
        started = config.model_copy(update={"run": config.run.model_copy(update={"dir": folder / f"search{number}"})})
        start_s = time.perf_counter()
        run_search(started, "search", events.append)
        searches.append(time.perf_counter() - start_s)
        around.append(in_one_process(config, folder / f"alone{number}-1"))
        alone.append(statistics.mean(around))
        slots = next(event["search"].slots for event in events if event["kind"] == "search")
        ratios.append(searches[-1] / ((alone[-1] + _ALLOWED_S * trials) / slots + starts[-1]))
    name = f"{trials} trials of {_EPOCHS} epochs of {config.data.source}, {slots} at once"
    return [
        bar_row(f"{name}: search over what it may take", ratios, "x", most=1.0),
        median_row("search", searches, "s"),
        median_row("the same trainings in one process", alone, "s"),
        median_row("start of Ray", starts, "s"),
    ]


def kills(count: int, trials: int, epochs: int, folder: Path) -> list[Row]:
    """Kill a search at random moments. Return whether it ended as the undisturbed one."""
    config = search_config(folder, trials, epochs)
    undisturbed = run_search(config, "search")
    tree = config.model_dump(mode="json", exclude_unset=True)
    tree["tracking"] = {"enabled": False}
    tune, space = tree.pop("tune"), tree.pop("space")
    tree.pop("run")
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    (folder / "killed.search.yaml").write_text(yaml.safe_dump({"tune": tune, **space}, sort_keys=False))
    killed = folder / "killed"
    command = [sys.executable, "-m", "distrec.cli.main", "tune", "run.yaml", "killed.search.yaml", f"run.dir={killed}"]
    generator = random.Random(time.time_ns())
    for number in range(count + 1):
        resume = ["run.resume=true"] if (killed / "search.yaml").exists() else []
        process = subprocess.Popen([*command, *resume], cwd=folder, stdout=subprocess.DEVNULL)
        if number == count:
            assert process.wait() == 0
            break
        lines = _lines(killed)
        while _lines(killed) == lines and process.poll() is None:  # until its trials run
            time.sleep(0.1)
        time.sleep(generator.uniform(0, 10))
        process.send_signal(signal.SIGKILL)
        process.wait()
        ended = sum('"reason"' in line for line in _lines(killed))
        print(f"killed with {ended} of {trials} trials ended", flush=True)
    records, events = Records(killed / "journal.jsonl"), [json.loads(line) for line in _lines(killed)]
    ends = Counter(event["trial"] for event in events if "reason" in {**event, **event.get("end", {})})
    epochs_of = Counter((event["trial"], event["epoch"]) for event in events if event["kind"] == "report")
    same = [(r.name, r.values, r.curve(undisturbed.metric)) for r in records.trials] == [
        (r.name, r.values, r.curve(undisturbed.metric)) for r in undisturbed.trials
    ]
    return [
        bar_row(f"{count} kills: most ends of a trial", [max(ends.values())], "", most=1),
        bar_row("trials that ended", [len(ends)], "", least=trials),
        bar_row("most reports of an epoch of a trial", [max(epochs_of.values())], "", most=1),
        bar_row("values and curves equal to the undisturbed search's", [float(same)], "", least=1),
    ]


def _lines(folder: Path) -> list[str]:
    journal = folder / "journal.jsonl"
    return journal.read_text().splitlines() if journal.exists() else []


def main() -> None:
    parser = arguments("Overhead of searches, and searches that are killed.")
    parser.add_argument("what", choices=["overhead", "kills"])
    parser.add_argument("--rounds", type=int, default=3, help="for overhead")
    parser.add_argument("--kills", type=int, default=5, help="for kills")
    given = parser.parse_args()
    trials = 4 if given.quick else _TRIALS
    with tempfile.TemporaryDirectory() as folder:
        if given.what == "overhead":
            rows = overhead(1 if given.quick else given.rounds, trials, Path(folder))
        else:
            rows = kills(2 if given.quick else given.kills, trials, 6, Path(folder))
        report(rows, "Searches", given.json)


if __name__ == "__main__":
    main()
