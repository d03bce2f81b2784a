"""A Ray of its own, with two CPUs, in a process that takes commands on its standard input, one a line.

- `hold` and `release`: reserve all CPUs, and free them.
- `trial CPUS WORKERS FOLDER CACHE`: train in a trial of Ray Tune with that many CPUs; the answer is its outcome.
"""

import json
import sys
from pathlib import Path

import ray
from ray import tune
from ray.util.placement_group import placement_group, remove_placement_group

from distrec.core.config import parse
from distrec.core.errors import UserError
from distrec.training.config import Config
from distrec.training.driver import train
from tests.conftest import SMALL, changed


def trial(words):
    """Train as a function of Ray Tune, and report the metrics or the error."""
    folder, sections = words["folder"], {"train": {"workers": words["workers"], "epochs": 1, "wait_s": 20}}
    sections |= {"run": {"dir": folder}, "data": {"cache": words["cache"]}, "tracking": {"enabled": False}}
    try:
        return {"outcome": str(train(changed(parse(Config, SMALL), **sections)).metrics)}
    except UserError as error:
        return {"outcome": f"UserError: {error}"}


def run_trial(cpus, workers, folder, cache):
    """Run one trial and return its outcome."""
    tuner = tune.Tuner(
        tune.with_resources(trial, {"CPU": float(cpus)}),
        param_space={"workers": int(workers), "folder": folder, "cache": cache},
        run_config=tune.RunConfig(storage_path=str(Path(folder).parent / "tune"), verbose=0),
    )
    return tuner.fit()[0].metrics["outcome"]


def main():
    """Start Ray, print its address, and answer commands until the input ends."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    print(json.dumps(ray.get_runtime_context().gcs_address), flush=True)
    group, answer = None, None
    for command, *words in map(str.split, sys.stdin):
        if command == "hold":
            group = placement_group([{"CPU": 2}])
            answer = group.wait(30)
        elif command == "release":
            remove_placement_group(group)  # again at the end of the test: no error
            answer = True
        else:
            answer = run_trial(*words)
        print(json.dumps(answer), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
