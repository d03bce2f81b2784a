"""Recommendations for all users on Ray: each worker holds the rows of its users and items, as in the training."""

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train.torch import TorchConfig, TorchTrainer

from distrec.core.errors import UserError, WorkerLost
from distrec.core.status import stage
from distrec.serve.candidates import Seen
from distrec.serve.everyone import Wanted, checked_out, merged_parts, write_chunks, write_parts
from distrec.serve.recommender import Catalogue
from distrec.training.cluster import root_cause
from distrec.training.connection import WORKER_CPUS, ray_running


def recommend_all_sharded(
    run: str | Path,
    out: str | Path,
    k: int = 20,
    *,
    workers: int,
    seen: Seen = "all",
    items: Sequence[Any] | None = None,
    exclude: Sequence[Any] | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> int:
    """Write what `recommend_all` writes, by several workers on Ray, on their CPUs.

    Uses the Ray that is initialized, or the cluster at RAY_ADDRESS, or starts Ray on this machine. All workers must be
    able to read the run folder and to write to the folder of `out`.

    Raises:
        UserError: as `recommend_all`; more workers than buckets or CPUs; a worker that was lost.
    """
    catalogue, out = Catalogue(run), checked_out(out)
    buckets = catalogue.dataset.manifest.buckets
    if not 1 <= workers <= buckets:
        raise UserError(f"--workers {workers} must be between 1 and the data's {buckets} buckets")
    wanted = Wanted(k, seen, catalogue.candidates(items, exclude))
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.absolute().parent))
    try:
        with ray_running(workers, note=note):
            if (cpus := ray.cluster_resources().get("CPU", 0)) < workers * WORKER_CPUS:  # type: ignore[no-untyped-call]
                raise UserError(f"--workers {workers}: the Ray cluster has {cpus:g} CPUs")
            stage(f"recommending to all users with {workers} workers")
            _fit({"run": str(catalogue.folder.path), "wanted": wanted, "folder": folder}, workers)
        return write_chunks(catalogue, out, merged_parts(catalogue.dataset, workers, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fit(arguments: dict[str, Any], workers: int) -> None:
    trainer = TorchTrainer(
        _run_worker,
        train_loop_config=arguments,
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, resources_per_worker={"CPU": WORKER_CPUS}, placement_strategy="SPREAD"
        ),
        run_config=ray.train.RunConfig(name="ray", storage_path=str(arguments["folder"])),
    )
    try:
        trainer.fit()
    except BaseException as error:
        cause = root_cause(error, arguments["run"])
        if isinstance(cause, WorkerLost):
            raise UserError(f"{cause}; nothing was written: run the command again") from None
        raise cause from None


def _run_worker(arguments: dict[str, Any]) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // ray.train.get_context().get_local_world_size()))
    write_parts(**arguments)
