"""What a search has found, as a table; read from its folder, finished or not."""

from pathlib import Path
from typing import Any

from distrec.tracking import result_table
from distrec.tracking.result_table import Row
from distrec.tuning.folder import SearchFolder
from distrec.tuning.journal import Record, Records


def search_table(folder: str | Path) -> list[Row]:
    """Return a row for each trial of a search, the best first: values, best value and epoch, epochs, seconds, end.

    Raises:
        UserError: this is not the folder of a search.
    """
    found = SearchFolder(Path(folder))
    return trial_rows(Records(found.journal).trials, found.search_config().metric)


def trial_rows(trials: list[Record], metric: str) -> list[Row]:
    """Return a row for each trial, the best first, those without a value last."""
    keys = dict.fromkeys(key for record in trials for key in record.values)

    def row(record: Record) -> Row:
        point = record.best(metric)
        found: dict[str, Any] = {"trial": record.name, metric: point and point[1], "epoch": point and point[0]}
        found |= {key: short(record.values.get(key)) for key in keys}
        return {**found, "epochs": record.epochs, "seconds": f"{record.seconds:.1f}", "ended": record.ended}

    def rank(record: Record) -> tuple[float, str]:
        point = record.best(metric)
        return (-point[1] if point else 1.0, record.name)

    return [row(record) for record in sorted(trials, key=rank)]


def short(value: Any) -> str:
    """Return a value as it is shown, with nothing for None."""
    return "" if value is None else result_table.short(value)
