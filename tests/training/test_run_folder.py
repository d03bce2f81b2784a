"""Run folders: claimed by one run at a time, and resumed from the newest checkpoint that is complete."""

import json
import multiprocessing
import os
import shutil

import pytest
import torch

from distrec.core.errors import UserError
from distrec.data.prepare import prepare
from distrec.sharding.checkpoint import is_complete, load_shard, save_shard
from distrec.sharding.partition import Partition
from distrec.training.ray_snapshot import restore_from
from distrec.training.run_folder import RunFolder
from tests.conftest import changed, run_config

FORKS = multiprocessing.get_context("forkserver")  # whose server imports the package once for all processes
FORKS.set_forkserver_preload([__name__])


def choose_and_prepare(config, barrier, queue):
    """Choose a run folder and prepare the data at the same moment as others; report both and the errors."""
    barrier.wait()
    try:
        folder, notes = RunFolder.choose(config, "many"), []
        dataset = prepare(config.data, log=notes.append)
        folder.start(config, {"process": os.getpid()})
        report = (str(folder.path), dataset.manifest.fingerprint, notes[0])
        barrier.wait()  # all have chosen before any releases
        folder.release()
        queue.put(report)
    except UserError as error:
        barrier.wait()
        queue.put(str(error))


def at_once(config, processes=20):
    """Run `choose_and_prepare` in processes of their own; return the reports."""
    barrier, queue = FORKS.Barrier(processes), FORKS.Queue()
    started = [FORKS.Process(target=choose_and_prepare, args=(config, barrier, queue)) for _ in range(processes)]
    for process in started:
        process.start()
    reports = [queue.get(timeout=120) for _ in started]
    for process in started:
        process.join(30)
    assert [process.exitcode for process in started] == [0] * processes
    return reports


@pytest.mark.timeout(240)
def test_twenty_runs_at_once_get_folders_of_their_own_and_one_prepares(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reports = at_once(changed(small, data={"cache": "cache"}))
    assert sorted(path for path, *_ in reports) == sorted(
        str(tmp_path / "runs" / name) for name in ["many", *(f"many-{n}" for n in range(2, 21))]
    )
    assert len({fingerprint for _, fingerprint, _ in reports}) == 1
    assert sum("prepared in" in note for *_, note in reports) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1  # neither locks nor half-written folders


@pytest.mark.timeout(240)
def test_of_twenty_runs_with_one_folder_one_gets_it(small, tmp_path):
    reports = at_once(run_config(small, tmp_path, "same"))
    refused = [report for report in reports if isinstance(report, str)]
    assert len(refused) == 19
    assert all("is used by another run, process " in report for report in refused)


def test_a_folder_in_which_no_run_started_is_removed_and_numbers_go_on(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = RunFolder.choose(small, "name"), RunFolder.choose(small, "name")
    assert (first.path.name, second.path.name) == ("name", "name-2")
    first.start(small, {})
    first.release()
    second.release()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["name"]
    (tmp_path / "runs" / "name-7").mkdir()  # holds no run
    resumed = RunFolder.choose(changed(small, run={"resume": True}), "name")
    assert resumed.path.name == "name"
    with pytest.raises(UserError, match="name is used by another run"):
        RunFolder.choose(changed(small, run={"resume": True}), "name")
    resumed.release()


@pytest.mark.parametrize("name", ["file/run", "file"])
def test_a_folder_that_cannot_be_written_is_named(small, tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=rf"cannot write the run folder {tmp_path}/{name} \(run.dir\): "):
        RunFolder.choose(run_config(small, tmp_path, name), "run")


def write_checkpoint(folder, value, workers=2):
    folder.mkdir(parents=True)
    for worker in range(workers):
        partition = Partition(7, 4, workers)
        rows = {"rows": torch.full((partition.size(worker), 100), float(value))}
        save_shard(folder, worker, {"users": partition}, {"users": rows}, {"value": value}, {})


DAMAGES = {
    "half": lambda file: os.truncate(file, file.stat().st_size // 2),
    "last byte": lambda file: os.truncate(file, file.stat().st_size - 1),
    "empty": lambda file: os.truncate(file, 0),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "missing": lambda file: file.unlink(),
    "all missing": lambda file: [other.unlink() for other in file.parent.iterdir()],
}


@pytest.mark.parametrize("shard", [0, 1])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(small, tmp_path, damage, shard):
    folder = RunFolder(tmp_path)
    for value in (1, 2, 3):
        write_checkpoint(tmp_path / "checkpoints" / f"checkpoint_{value}", value)
    restore_from(tmp_path / "checkpoints", ["checkpoint_2", "checkpoint_3"])
    assert folder.last_checkpoint().name == "checkpoint_3"
    damaged = tmp_path / "checkpoints" / "checkpoint_3"
    DAMAGES[damage](damaged / f"shard-0000{shard}-of-00002.pt")
    assert not is_complete(damaged)
    with pytest.raises(UserError):
        load_shard(damaged, shard, {"users": Partition(7, 4, 2)})
    notes = []
    assert folder.last_checkpoint(notes.append).name == "checkpoint_2"
    assert notes == ["checkpoint_3 is damaged; using checkpoint_2, the one before"]
    folder.prepare_resume(notes.append)
    assert notes[1].endswith("renamed to damaged_checkpoint_3; the run goes on from checkpoint_2")
    record = json.loads((tmp_path / "checkpoints" / "checkpoint_manager_snapshot.json").read_text())
    assert record["latest_checkpoint_result"]["checkpoint_dir_name"] == "checkpoint_2"


def test_without_a_complete_checkpoint_a_run_starts_again(tmp_path):
    folder, notes = RunFolder(tmp_path), []
    folder.prepare_resume(notes.append)
    assert notes == []
    write_checkpoint(tmp_path / "checkpoints" / "checkpoint_1", 1)
    restore_from(tmp_path / "checkpoints", ["checkpoint_1"])
    next((tmp_path / "checkpoints" / "checkpoint_1").iterdir()).unlink()
    with pytest.raises(UserError, match="has no checkpoint: checkpoint_1 is damaged"):
        folder.last_checkpoint()
    folder.prepare_resume(notes.append)
    assert notes[0].endswith("the run starts at its first epoch")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["damaged_checkpoint_1"]


@pytest.mark.parametrize("name", ["run.json", "result.json"])
def test_a_truncated_file_of_a_run_is_named(tmp_path, name):
    (tmp_path / name).write_text('{"fol')
    with pytest.raises(UserError, match=f"{tmp_path}/{name} is damaged"):
        RunFolder(tmp_path).facts(), RunFolder(tmp_path).result()


def test_a_damaged_best_checkpoint_is_named(tmp_path):
    notes = []
    assert RunFolder(tmp_path).best_checkpoint(notes.append) is None and notes == []
    write_checkpoint(tmp_path / "best" / "epoch_000003", 3)
    assert RunFolder(tmp_path).best_checkpoint(notes.append).name == "epoch_000003" and notes == []
    os.truncate(tmp_path / "best" / "epoch_000003" / "shard-00000-of-00002.pt", 100)
    assert RunFolder(tmp_path).best_checkpoint(notes.append) is None
    assert notes == [f"{tmp_path}/best/epoch_000003, the best epoch, is damaged; using the last checkpoint"]


@pytest.mark.parametrize("content", ["", '{"checkpoint_results": [', "{}", None])
def test_ray_loads_the_record_that_replaces_a_damaged_one(tmp_path, content):
    """Ray Train's own reader accepts it; the record of the run named a checkpoint that is gone, or was truncated."""
    from ray.train import CheckpointConfig
    from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
    from ray.train.v2._internal.execution.storage import StorageContext

    names = ["checkpoint_1", "checkpoint_2"]
    for value in (1, 2):
        write_checkpoint(tmp_path / "checkpoints" / f"checkpoint_{value}", value)
    restore_from(tmp_path / "checkpoints", [*names, "checkpoint_gone"])
    if content is not None:
        (tmp_path / "checkpoints" / "checkpoint_manager_snapshot.json").write_text(content)
    RunFolder(tmp_path).prepare_resume(lambda text: None)
    manager = CheckpointManager(CheckpointConfig(num_to_keep=2), StorageContext(str(tmp_path), "checkpoints"))
    assert manager.latest_checkpoint_result.checkpoint.path == str(tmp_path / "checkpoints" / "checkpoint_2")
    shutil.rmtree(tmp_path / "checkpoints")
