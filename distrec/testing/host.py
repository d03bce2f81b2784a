"""A host of the training loop without Ray: checkpoints go to a folder, events to a list."""

import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any


class FolderHost:
    """Implements `distrec.training.loop.Host`.

    Args:
        folder: existing folder; the parts of the checkpoint after epoch n go to `folder`/n.
        restore: folder of the checkpoint to go on from.
    """

    def __init__(self, folder: Path, restore: Path | None = None) -> None:
        self.folder, self.restore = folder, restore
        self.events: list[dict[str, Any]] = []

    def restored(self) -> AbstractContextManager[Path | None]:
        return nullcontext(self.restore)

    def emit(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def keep(self, folder: Path, epoch: int, best: bool) -> None:
        shutil.copytree(folder, self.folder / str(epoch), dirs_exist_ok=True)

    def best(self, epoch: int) -> Path | None:
        return self.folder / str(epoch)
