"""Recommendations for all users: in chunks, by several workers, on Ray, and files that are complete or absent."""

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from distrec.core.errors import UserError
from distrec.serve import everyone
from distrec.serve.everyone import Wanted, merged_parts, recommend_all, table_writer, write_chunks, write_parts
from distrec.serve.recommender import load_model
from distrec.testing.ranks import run_ranks
from tests.cli.test_cli import run


def write_small_parts(run, wanted, folder):
    """Write parts of 70 users, so that there are several chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(everyone, "_CHUNK", 70)
        write_parts(run, wanted, folder)


def same(a: pa.Table, b: pa.Table) -> None:
    """Assert that two tables hold the same lists; scores may differ by rounding, as products have other shapes."""
    assert a.drop_columns("score").to_pydict() == b.drop_columns("score").to_pydict()
    assert a["score"].to_numpy() == pytest.approx(b["score"].to_numpy(), rel=1e-5)


@pytest.mark.parametrize("name", ["mf", "lightgcn", "simplex", "ease"])
@pytest.mark.long
def test_all_users_in_chunks_and_by_several_workers_are_as_if_asked_one_by_one(run_of, tmp_path, monkeypatch, name):
    model = load_model(run_of(name))
    expected = model.recommend(model.users.ids, 5)
    for workers in (1, 2, 3):
        folder = tmp_path / str(workers)
        folder.mkdir()
        run_ranks(workers, write_small_parts, str(run_of(name)), Wanted(5, "all", model.candidates(None, None)), folder)
        out = tmp_path / f"{workers}.parquet"
        assert write_chunks(model, out, merged_parts(model.dataset, workers, folder)) == len(model.users)
        same(pq.read_table(out), expected)
    monkeypatch.setattr(everyone, "_CHUNK", 70)
    assert recommend_all(model, tmp_path / "all.csv", 5) == len(model.users)
    table = pyarrow.csv.read_csv(tmp_path / "all.csv")
    assert table["item"].to_pylist() == expected["item"].to_pylist()
    assert table["source"].to_pylist() == ["model"] * len(expected)


@pytest.mark.long
def test_all_users_on_ray(ray_cluster, run_of, tmp_path, capsys):
    words = ["--all", "--k", "5", "--exclude", str(tmp_path / "not.txt")]
    model = load_model(run_of("mf"))
    (tmp_path / "not.txt").write_text("\n".join(map(str, model.items.ids[:9].to_pylist())))
    for workers in (None, 2):
        out = tmp_path / f"{workers}.parquet"
        more = [] if workers is None else ["--workers", str(workers)]
        code, printed, err = run(capsys, "recommend", str(run_of("mf")), *words, "--out", str(out), *more)
        assert code == 0 and printed.strip() == f"{out}: {len(model.users):,} users", err
    same(pq.read_table(tmp_path / "2.parquet"), pq.read_table(tmp_path / "None.parquet"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.parquet", "None.parquet", "not.txt"]
    code, _, err = run(capsys, "recommend", str(run_of("mf")), *words, "--out", "x.parquet", "--workers", "13")
    assert code == 2 and "--workers 13 must be between 1 and the data's 12 buckets" in err


def test_an_interrupted_file_does_not_appear(tmp_path):
    table = pa.table({"user": [1], "rank": [1], "item": [2], "score": [0.5], "source": ["model"]})
    with pytest.raises(KeyboardInterrupt), table_writer(tmp_path / "a.parquet") as write:
        write(table)
        raise KeyboardInterrupt
    assert [*tmp_path.iterdir()] == []
    with table_writer(tmp_path / "a.csv") as write:
        write(table)
        write(table)
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
    assert np.array_equal(pyarrow.csv.read_csv(tmp_path / "a.csv")["user"], [1, 1])


def test_what_the_command_line_refuses(run_of, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mf = str(run_of("mf"))
    files = {"empty.txt": "\n", "two.csv": "a,b\n1,2\n", "twice.csv": "user,user\n1,2\n"}
    for name, text in (files | {"gap.csv": "user,item\n1,2\n,3\n"}).items():
        (tmp_path / name).write_text(text)
    for words, message in {
        ("--all",): "--all needs --out FILE, a .parquet or .csv file",
        ("--user", "1", "--workers", "2"): "--workers is for --all",
        ("--all", "--out", "recs.json"): "recs.json: recommendations are written as .parquet or .csv",
        ("--all", "--out", "no/recs.csv"): "there is no folder",
        ("--users", "absent.txt"): "cannot read absent.txt",
        ("--history", "empty.txt"): "empty.txt holds no id",
        ("--users", "two.csv"): "two.csv has no column user; it has a, b",
        ("--users", "twice.csv"): "twice.csv has 2 columns named user: keep one",
        ("--history", "gap.csv"): "gap.csv: a row lacks its user or its item",
    }.items():
        code, out, err = run(capsys, "recommend", mf, *words)
        assert (code, out) == (2, "") and message in err, (words, err)
    with pytest.raises(UserError, match="is not a run folder"):
        load_model(tmp_path)


def test_users_and_histories_from_files(run_of, tmp_path, capsys):
    model = load_model(run_of("mf"))
    users, items = model.users.ids[:3].to_pylist(), model.items.ids[:4].to_pylist()
    (tmp_path / "users.txt").write_text(f"{users[2]}\n\n  {users[0]}\nzed\n")
    out = tmp_path / "u.parquet"
    code, _, err = run(
        capsys, "recommend", str(run_of("mf")), "--users", str(tmp_path / "users.txt"), "--out", str(out)
    )
    assert code == 0 and "user 'zed' is unknown to the model: the most popular items instead" in err
    same(pq.read_table(out), model.recommend([users[2], users[0], "zed"]))
    (tmp_path / "padded.csv").write_text(f"user\n {users[1]} \n")
    run(capsys, "recommend", str(run_of("mf")), "--users", str(tmp_path / "padded.csv"), "--out", str(out))
    same(pq.read_table(out), model.recommend([users[1]]))
    (tmp_path / "h.csv").write_text(
        "user,item\n"
        + "".join(f"{u},{i}\n" for u in ("ann", "bo, jr") for i in items[:2]).replace("bo, jr", '"bo, jr"')
    )
    code, _, _ = run(capsys, "recommend", str(run_of("mf")), "--history", str(tmp_path / "h.csv"), "--out", str(out))
    same(pq.read_table(out), model.recommend_new({"ann": items[:2], "bo, jr": items[:2]}))
    (tmp_path / "h.txt").write_text("\n".join(map(str, [*items, "no such item"])))
    code, printed, err = run(capsys, "recommend", str(run_of("mf")), "--history", str(tmp_path / "h.txt"), "--k", "1")
    assert "items that are not in the data of the run have no effect: 'no such item'" in err
    assert str(model.recommend_new({0: items}, 1)["item"][0]) in printed
