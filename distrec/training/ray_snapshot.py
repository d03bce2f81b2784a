"""Ray Train's record of the checkpoints of a run, from which it resumes. The format is that of ray >=2.60,<2.61.

Ray Train writes the record in place, and refuses one that is truncated or names a missing checkpoint.
"""

import json
from pathlib import Path
from typing import Any

_FILE = "checkpoint_manager_snapshot.json"


def restore_from(folder: Path, names: list[str]) -> None:
    """Let the next run of Ray Train in a folder know these checkpoints alone, and go on from the last.

    Args:
        folder: folder of the checkpoints and of the record, which need not exist.
        names: names of the checkpoints, the oldest first.
    """
    file = folder / _FILE
    if _recorded(file) == names:
        return
    if not names:
        file.unlink(missing_ok=True)
        return
    checkpoints: list[dict[str, Any]] = [{"checkpoint_dir_name": name, "metrics": {}} for name in names]
    record = {
        "checkpoint_results": checkpoints,
        "checkpoint_report_indices": list(range(len(names))),
        "latest_checkpoint_result": checkpoints[-1],
        "current_report_index": len(names),
    }
    empty = [
        *("pending_training_results", "pending_validation_specs", "validated_checkpoint_dir_names"),
        *("timed_out_validation_checkpoint_dir_names", "failed_validation_checkpoint_dir_names"),
    ]
    file.write_text(json.dumps(record | {key: [] for key in empty}))


def _recorded(file: Path) -> list[str] | None:
    """Return the names of the checkpoints in a record, None if it cannot be read."""
    try:
        record = json.loads(file.read_text())
        names: list[str] = [result["checkpoint_dir_name"] for result in record["checkpoint_results"]]
        return names if record["latest_checkpoint_result"]["checkpoint_dir_name"] == names[-1] else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
