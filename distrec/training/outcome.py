"""The result of a run, made of what the loop returned."""

from typing import Any

from distrec.data.dataset import Dataset
from distrec.tracking.environment import versions
from distrec.training.config import Config
from distrec.training.run_folder import TEST_USERS, Result, RunFolder, Timing


def make_result(config: Config, dataset: Dataset, folder: RunFolder, outcome: dict[str, Any], total_s: float) -> Result:
    """Return the result of what rank 0's loop returned, after `total_s` seconds. Writes the metrics of each user."""
    if outcome["per_user"] is not None:
        outcome["per_user"].write(folder.path / TEST_USERS, dataset.user_ids())
    history, test, tested = outcome["history"], outcome["test"], outcome["tested_epoch"]
    metrics = {f"valid/{key}": value for key, value in history[tested - 1].get("metrics", {}).items()}
    metrics |= {f"test/{key}": value for key, value in test.means().items()} if test else {}
    epoch_s = tuple(record["seconds"] for record in history)
    eval_s, first_batch_s = outcome["eval_s"], outcome["first_batch_s"]
    eval_s += sum(record.get("eval_s", 0.0) for record in history)
    timing = Timing(epoch_s=epoch_s, train_s=sum(epoch_s), eval_s=eval_s, first_batch_s=first_batch_s, total_s=total_s)
    return Result(
        metrics=metrics,
        test_users=test.users if test else 0,
        left_out_users=test.left_out if test else 0,
        untrained_users=dataset.manifest.users_without_train,
        untrained_items=dataset.manifest.items_without_train,
        untrained_share=test.untrained_share if test else 0,
        workers=config.train.workers,
        epochs=len(history),
        tested_epoch=tested,
        interactions=dataset.manifest.train,
        loss=tuple(record["loss"] for record in history),
        timing=timing,
        fingerprint=dataset.manifest.fingerprint,
        versions=versions(),
        folder=folder.path,
    )
