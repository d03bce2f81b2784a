"""The commands `recommend` and `export`. Heavy modules are imported when a command runs; one user needs no Ray."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distrec.cli.report import add_to_recorded_run
from distrec.core.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from distrec.serve.recommender import Catalogue, Recommender

Note = Callable[[str], None]

_EXAMPLES = """\
examples:
  distrec recommend runs/mine --user ana --k 10
  distrec recommend runs/mine --users customers.txt --out recs.csv --exclude sold_out.txt
  distrec recommend runs/mine --all --out recs.parquet
  distrec recommend runs/mine --history basket.txt      a new user: one item a line

A file of ids has one id a line, or is a CSV, TSV or Parquet table with the column of the training data. The column
`source` is `model`, `history` for a new user, or `popular`: for a user who is not in the data or has no training
interactions, the items with the most training interactions.
"""


def add_recommend(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `distrec recommend`."""
    command.epilog = _EXAMPLES
    command.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    whom = command.add_mutually_exclusive_group(required=True)
    whom.add_argument("--user", action="append", metavar="ID", help="a user, by the id in your data; may be repeated")
    whom.add_argument("--users", type=Path, metavar="FILE", help="users, by their ids")
    whom.add_argument("--all", action="store_true", help="all users of the data; needs --out")
    text = "items of a new user, or a table of users and items: recommends without training again"
    whom.add_argument("--history", type=Path, metavar="FILE", help=text)
    command.add_argument("--k", type=int, default=20, metavar="K", help="length of the lists (default: 20)")
    command.add_argument("--out", type=Path, metavar="FILE", help="write a .parquet or .csv file instead of printing")
    command.add_argument("--items", type=Path, metavar="FILE", help="recommend only these items")
    command.add_argument("--exclude", type=Path, metavar="FILE", help="never recommend these items")
    text = "user's items to leave out: those of all parts of the data, of the training part, or none (default: all)"
    command.add_argument("--seen", choices=("all", "train", "none"), default="all", help=text)
    command.add_argument(
        "--include-seen", dest="seen", action="store_const", const="none", help="the same as --seen none"
    )
    text = "with --all: rank on Ray, with the tables sharded over this many workers"
    command.add_argument("--workers", type=int, metavar="N", help=text)


def add_export(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `distrec export`."""
    command.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    text = "of the vectors: in users.parquet and items.parquet, or beside them (default: parquet)"
    command.add_argument("--format", choices=("parquet", "npy", "safetensors"), default="parquet", help=text)
    text = "also build an index of the items for approximate search, and print its recall"
    command.add_argument("--index", choices=("faiss", "hnswlib"), help=text)
    text = "also write DIR/mlflow_model, a pyfunc that recommends, and add it to the run in MLflow if it is recorded"
    command.add_argument("--mlflow", action="store_true", help=text)


def export(arguments: argparse.Namespace, note: Note) -> None:
    """Run `distrec export`. `note` receives lines on what is unusual."""
    from distrec.serve.export import MLFLOW_MODEL
    from distrec.serve.export import export as export_model
    from distrec.serve.recommender import load_model

    model = load_model(arguments.run, note=note)
    out = export_model(model, arguments.out, arguments.format, arguments.index, arguments.mlflow, print)
    print(f"exported to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    if arguments.mlflow and (run := add_to_recorded_run(model.folder.facts(), out / MLFLOW_MODEL, note, "model")):
        print(f"MLflow: runs:/{run}/model")


def recommend(arguments: argparse.Namespace, note: Note) -> None:
    """Run `distrec recommend`. `note` receives lines on what is unusual."""
    from distrec.serve.everyone import checked_out, table_writer
    from distrec.serve.recommender import Catalogue, load_model

    if arguments.all and not arguments.out:
        raise UserError("--all needs --out FILE, a .parquet or .csv file")
    if arguments.workers is not None and not arguments.all:
        raise UserError("--workers is for --all: a few users are ranked in this process")
    if arguments.out:
        checked_out(arguments.out)
    if arguments.workers is not None:
        from distrec.serve.sharded import recommend_all_sharded

        options = {"k": arguments.k, "seen": arguments.seen, **_restrictions(arguments, Catalogue(arguments.run), note)}
        users = recommend_all_sharded(arguments.run, arguments.out, workers=arguments.workers, note=note, **options)
        print(f"{arguments.out}: {users:,} users")
        return
    model = load_model(arguments.run, note=note)
    chosen = _restrictions(arguments, model, note)
    if arguments.all:
        from distrec.serve.everyone import recommend_all

        users = recommend_all(model, arguments.out, arguments.k, seen=arguments.seen, **chosen)
        print(f"{arguments.out}: {users:,} users")
        return
    table = _table(arguments, model, chosen, note)
    _note_popular(note, table, "has no history of known items" if arguments.history else "is unknown to the model")
    if arguments.out:
        with table_writer(arguments.out) as write:
            write(table)
        print(f"{arguments.out}: {table.num_rows:,} rows")
    else:
        _print(table)


def _table(arguments: argparse.Namespace, model: "Recommender", chosen: dict[str, Any], note: Note) -> "pa.Table":
    """Return the lists of the users, or of the new users, that the arguments name."""
    if arguments.history:
        from distrec.serve.ids import read_histories

        histories = read_histories(arguments.history, *_columns(model))
        _note_unknown(note, model.items.missing([item for items in histories.values() for item in items]), "items")
        return model.recommend_new(histories, arguments.k, include_seen=arguments.seen == "none", **chosen)
    from distrec.serve.ids import read_ids

    users = arguments.user or read_ids(arguments.users, _columns(model)[0])
    return model.recommend(users, arguments.k, seen=arguments.seen, **chosen)


def _restrictions(arguments: argparse.Namespace, catalogue: "Catalogue", note: Note) -> dict[str, Any]:
    """Return the arguments `items` and `exclude` of the functions."""
    from distrec.serve.ids import read_ids

    column = _columns(catalogue)[1]
    files = {"items": arguments.items, "exclude": arguments.exclude}
    ids = {name: None if file is None else read_ids(file, column) for name, file in files.items()}
    for listed in ids.values():
        if listed:
            _note_unknown(note, catalogue.items.missing(listed), "items")
    return ids


def _columns(catalogue: "Catalogue") -> tuple[str, str]:
    """Return the names of the columns of users and items in the user's tables."""
    data = catalogue.config.data
    return data.user_column, data.item_column


def _note_unknown(note: Note, unknown: list[Any], what: str) -> None:
    if unknown:
        others = f" (and {len(unknown) - 1:,} more)" if len(unknown) > 1 else ""
        note(f"{what} that are not in the data of the run have no effect: {unknown[0]!r}{others}")


def _note_popular(note: Note, table: "pa.Table", why: str) -> None:
    """Say which users are answered with popular items, and why; `why` follows the name of one user."""
    import numpy as np

    from distrec.core import columns
    from distrec.serve.lists import POPULAR

    source = columns.values(table["source"].combine_chunks().indices, np.int8)
    users = table["user"].take(columns.numeric(np.flatnonzero(source == POPULAR)))
    popular = list(dict.fromkeys(users.to_pylist()))
    if popular:
        others = f" (and {len(popular) - 1:,} more)" if len(popular) > 1 else ""
        instead = "the most popular items instead, with training interactions as score"
        note(f"user {str(popular[0])!r}{others} {why}: {instead}")


def _print(table: "pa.Table") -> None:
    from distrec.cli.progress import results_table

    if len(table["user"].unique()) <= 1:
        table = table.drop_columns("user")
    results_table(table.to_pylist())
