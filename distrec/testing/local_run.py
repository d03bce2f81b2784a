"""A whole run in this process, without Ray: its run folder is as `distrec train` leaves one, but for MLflow."""

import shutil
import time
from pathlib import Path

import torch

from distrec.data.dataset import Dataset
from distrec.data.prepare import prepare
from distrec.testing.host import FolderHost
from distrec.training.config import Config
from distrec.training.driver import _result
from distrec.training.loop import Job, Loop, make_learner
from distrec.training.run_folder import BEST, CHECKPOINTS, Result, RunFolder, best_name


class _RunHost(FolderHost):
    def keep(self, folder: Path, epoch: int, best: bool) -> None:
        shutil.copytree(folder, self.folder / CHECKPOINTS / f"checkpoint_{epoch:06d}", dirs_exist_ok=True)
        if best:
            shutil.copytree(folder, self.folder / BEST / best_name(epoch), dirs_exist_ok=True)

    def best(self, epoch: int) -> Path | None:
        return self.folder / BEST / best_name(epoch)


def train_locally(config: Config, path: Path) -> Result:
    """Train with one worker in the run folder `path`; return the result, which is written to it."""
    start, dataset, folder = time.perf_counter(), prepare(config.data), RunFolder(path)
    dataset = Dataset.open(dataset.path.absolute())
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.start(config, {"fingerprint": dataset.manifest.fingerprint, "data": str(dataset.path)})
    learner = make_learner(config, dataset, torch.device("cpu"))
    outcome = Loop(Job(config, dataset, "thread"), learner, _RunHost(folder.path)).run()
    result = _result(config, dataset, folder, outcome, time.perf_counter() - start)
    folder.finish(result)
    return result
