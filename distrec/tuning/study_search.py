"""The search of a cell: its best configuration, found once and kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from distrec.core.config import flat, parse, with_values
from distrec.core.errors import UserError
from distrec.tuning.config import SearchConfig
from distrec.tuning.folder import BEST_CONFIG, SearchFolder
from distrec.tuning.journal import Records
from distrec.tuning.search import best_trial, refit_values
from distrec.tuning.space import Values, make_space, read_search
from distrec.tuning.study_cells import Cell, key_of

_IGNORED = ("run.dir", "run.resume", "tracking.", "data.")


def cell_search(
    search: str | dict[str, Any], cell: Cell, folder: Path, fingerprint: str, uri: str | None
) -> SearchConfig:
    """Return the search of a cell, in a folder of `folder` that its configuration and data name.

    Args:
        search: search file, or ranges and `tune.*` keys.
        cell: the cell.
        folder: where searches are kept.
        fingerprint: of the data.
        uri: where to record it; null for nowhere.

    Raises:
        UserError: an unknown key, a range that its key does not allow, a key that the cell gives.
    """
    fixed, ranges = _parts(search)
    if both := sorted({*fixed, *ranges} & cell.values.keys()):
        raise UserError(f"cell {cell.label}: search: {both[0]} is given by the cell")
    values: Values = {**fixed, "tune.refit_seeds": 1, "tracking.enabled": uri is not None, "tracking.uri": uri}
    config = parse(SearchConfig, {**cell.with_values(values), "space": ranges}, f"cell {cell.label}: search: ")
    make_space(config, config.space)  # finds mistakes before the first search
    config = with_values(config, {"tune.refit_seeds": 0})  # the runs of the study are its refits, checked above
    leaves = {key: value for key, value in flat(config).items() if not key.startswith(_IGNORED)}
    path = folder / key_of(leaves, fingerprint)
    return with_values(config, {"run.dir": str(path), "run.resume": (path / SearchFolder.config_name).exists()})


def _parts(search: str | dict[str, Any]) -> tuple[Values, Values]:
    """Return (fixed values, ranges) of a search file or of what one holds, by dotted key."""
    if isinstance(search, str):
        return read_search(Path(search))
    fixed = {f"tune.{key}": value for key, value in dict(search.get("tune") or {}).items()}
    fixed |= {key: value for key, value in search.items() if key.startswith("tune.")}
    return fixed, {key: value for key, value in search.items() if key not in fixed and key != "tune"}


def search_cell(config: SearchConfig, on_event: Callable[[dict[str, Any]], object]) -> Values:
    """Return what the search of a cell gives its runs, after running it if it is not finished: the best values, for
    their best number of epochs.

    Raises:
        UserError: the search has failed.
    """
    from distrec.tuning.tuner import run_search  # here, as it imports Ray

    assert config.run.dir is not None
    if not (config.run.dir / BEST_CONFIG).exists():
        run_search(config, "search", on_event)
    trials = Records(SearchFolder(config.run.dir).journal).trials
    best = best_trial(trials, config.metric)
    assert best is not None, config.run.dir
    return refit_values(best, config.metric)
