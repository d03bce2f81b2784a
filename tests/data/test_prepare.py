"""Preparation: codes, duplicates, overlap, parts, and the cache of prepared folders."""

import contextlib
import json
import multiprocessing
import re

import numpy as np
import pytest

from distrec.core.config import parse
from distrec.core.errors import UserError
from distrec.data import prepare as prepare_module
from distrec.data import writer
from distrec.data.config import DataConfig
from distrec.data.dataset import Dataset, Part
from distrec.data.prepare import prepare
from tests.data.files import SMALL, raw_pairs, run, write


def test_codes_are_sorted_by_raw_id_over_all_parts(tmp_path):
    write(tmp_path / "d/train.txt", [(30, 5), (4, 100), (4, 5)])
    write(tmp_path / "d/test.txt", [(7, 20), (30, 100)])
    dataset = run(tmp_path, tmp_path / "d")
    assert dataset.user_ids().to_pylist() == [4, 7, 30]
    assert dataset.item_ids().to_pylist() == [5, 20, 100]
    users, items = dataset.interactions(Part.TRAIN, [0, 1, 2])
    assert (users.dtype, items.dtype) == (np.int32, np.int32)
    assert (users.tolist(), items.tolist()) == ([0, 0, 2], [0, 2, 0])
    users, items = dataset.interactions(Part.TEST, [2, 1, 0])
    assert (users.tolist(), items.tolist()) == ([2, 1], [2, 1])
    assert (dataset.manifest.users_without_train, dataset.manifest.items_without_train) == (1, 1)  # 7 and 20
    assert dataset.user_degrees().tolist() == [2, 0, 1]
    assert dataset.item_degrees().tolist() == [2, 0, 1]


def test_string_ids_are_sorted_by_code_point(tmp_path):
    dataset = run(tmp_path, write(tmp_path / "a.csv", [("Zoë", "b"), ("10", "ä"), ("9", "b"), ("007", "B")]))
    assert dataset.user_ids().to_pylist() == ["007", "10", "9", "Zoë"]
    assert dataset.item_ids().to_pylist() == ["B", "b", "ä"]
    assert sorted(raw_pairs(dataset)) == [("007", "B"), ("10", "ä"), ("9", "b"), ("Zoë", "b")]


def test_ids_of_two_files_unify(tmp_path):
    train = write(tmp_path / "train.txt", [(1, 2), (10, 3)])
    test = write(tmp_path / "test.csv", [("10", "2"), ("guest", "3")])
    dataset = run(tmp_path, train, test=test)
    assert dataset.user_ids().to_pylist() == ["1", "10", "guest"]
    assert dataset.item_ids().to_pylist() == [2, 3]
    assert raw_pairs(dataset, Part.TEST) == [("10", 2), ("guest", 3)]


@pytest.mark.parametrize("name", ["a.csv", "a.txt"])
def test_result_does_not_depend_on_the_order_of_lines(tmp_path, name):
    pairs = [(user, user * item % 31) for user in range(20) for item in range(1, 12)]
    shuffled = [pairs[k] for k in np.random.default_rng(0).permutation(len(pairs))]
    settings = {"valid_fraction": 0.2, "test_fraction": 0.2}
    one = run(tmp_path, write(tmp_path / "one" / name, pairs), **settings)
    two = run(tmp_path, write(tmp_path / "two" / name, shuffled), **settings)
    assert one.path != two.path
    assert one.manifest.fingerprint == two.manifest.fingerprint
    for part in Part:
        assert raw_pairs(one, part) == raw_pairs(two, part)


def test_duplicates_are_merged_and_counted_by_part(tmp_path):
    write(tmp_path / "d/train.csv", [*SMALL, SMALL[0], SMALL[0], SMALL[3]])
    write(tmp_path / "d/valid.csv", [(2, 7), (2, 7)])
    write(tmp_path / "d/test.csv", [(2, 30)])
    lines = []
    dataset = run(tmp_path, tmp_path / "d", lines.append)
    assert sorted(raw_pairs(dataset)) == sorted(SMALL)
    m = dataset.manifest
    assert (m.train, m.valid, m.test) == (6, 1, 1)
    assert m.duplicates == 4
    assert m.duplicates_by_part == {"train": 3, "valid": 1, "test": 0}
    assert "data: 4 repeated interactions merged" in lines


def test_held_out_pairs_that_another_part_has_are_dropped(tmp_path):
    write(tmp_path / "d/train.csv", SMALL)
    write(tmp_path / "d/valid.csv", [(1, 2), (2, 7), (2, 30)])  # in training; in test; good
    write(tmp_path / "d/test.csv", [(3, 10), (2, 7)])  # in training; good
    lines = []
    dataset = run(tmp_path, tmp_path / "d", lines.append)
    assert raw_pairs(dataset, Part.VALID) == [(2, 30)]
    assert raw_pairs(dataset, Part.TEST) == [(2, 7)]
    assert (dataset.manifest.overlap, dataset.manifest.duplicates) == (3, 0)
    assert "data: 3 held-out interactions left out, because another part has them" in lines


def test_recbole_folder_with_three_parts(tmp_path):
    for part, pairs in (("train", SMALL), ("valid", [(2, 7)]), ("test", [(2, 30)])):
        write(tmp_path / f"shop/shop.{part}.inter", pairs)
    write(tmp_path / "shop/item_list.txt", [(1, 1)])
    dataset = run(tmp_path, tmp_path / "shop")
    assert (dataset.manifest.name, raw_pairs(dataset, Part.VALID), raw_pairs(dataset, Part.TEST)) == (
        "shop",
        [(2, 7)],
        [(2, 30)],
    )


def test_parts_are_held_out_only_if_the_source_has_none(tmp_path):
    pairs = [(user, item) for user in range(10) for item in range(20)]
    source = write(tmp_path / "all.csv", pairs)
    both = run(tmp_path, source, test_fraction=0.25, valid_fraction=0.2).manifest
    assert (both.train, both.valid, both.test) == (120, 30, 50)  # 20 -> 5 test, then 15 -> 3 valid
    test = write(tmp_path / "more.csv", [(3, 77)])
    one = run(tmp_path, source, test_fraction=0.25, valid_fraction=0.2, test=test).manifest
    assert (one.train, one.valid, one.test) == (160, 40, 1)
    none = run(
        tmp_path, source, test_fraction=0.25, valid_fraction=0.2, test=test, valid=write(tmp_path / "v.csv", [(3, 78)])
    )
    assert (none.manifest.train, none.manifest.valid, none.manifest.test) == (200, 1, 1)
    assert run(tmp_path, source).manifest.test == 0


def test_the_test_part_does_not_depend_on_the_validation_part(tmp_path):
    source = write(tmp_path / "all.csv", [(user, item) for user in range(10) for item in range(20)])
    settings = {"test_fraction": 0.25, "split_seed": 3}
    parts = [raw_pairs(run(tmp_path, source, valid_fraction=f, **settings), Part.TEST) for f in (0, 0.1, 0.5)]
    assert parts[0] == parts[1] == parts[2]
    assert parts[0] != raw_pairs(run(tmp_path, source, test_fraction=0.25, split_seed=4), Part.TEST)


def test_every_interaction_lies_in_the_bucket_of_its_user_in_order(tmp_path):
    pairs = [(user, item) for user in range(10) for item in range(user + 1)]
    dataset = run(tmp_path, write(tmp_path / "a.csv", pairs), buckets=4, test_fraction=0.3, valid_fraction=0.3)
    found = []
    for bucket in range(4):
        for part in Part:
            users, items = dataset.interactions(part, [bucket])
            rows = list(zip(users.tolist(), items.tolist(), strict=True))
            assert rows == sorted(rows) and all(user % 4 == bucket for user, _ in rows)
            found += rows
    assert sorted(found) == pairs
    assert sum(dataset.manifest.count(part) for part in Part) == len(pairs)


def test_one_interaction_and_more_buckets_than_users(tmp_path):
    dataset = run(tmp_path, write(tmp_path / "a.txt", [(5, 9)]), buckets=8, valid_fraction=0.5, test_fraction=0.5)
    assert raw_pairs(dataset) == [(5, 9)]
    m = dataset.manifest
    assert (m.users, m.items, m.train, m.valid, m.test) == (1, 1, 1, 0, 0)
    assert dict(dataset.summary())["density"] == "100 %"


def test_a_user_with_every_item(tmp_path):
    pairs = [(0, item) for item in range(7)] + [(1, 3)]
    dataset = run(tmp_path, write(tmp_path / "a.txt", pairs))
    assert (dataset.user_degrees().tolist(), dataset.item_degrees().tolist()) == ([7, 1], [1, 1, 1, 2, 1, 1, 1])


def test_a_second_run_reuses_the_folder(tmp_path, monkeypatch):
    source = write(tmp_path / "a.csv", [*SMALL, ("", 3)])
    lines = []
    first = run(tmp_path, source, lines.append, on_bad_line="skip")
    assert re.fullmatch(rf"data: a prepared in \d+\.\d s: {re.escape(str(first.path))}", lines[0])
    monkeypatch.setattr(prepare_module, "_build", None)
    again = []
    second = run(tmp_path, source, again.append, on_bad_line="skip")
    assert second == first
    assert (again[0], again[1:]) == (f"data: a was prepared before: {first.path}", lines[1:])
    assert "data: 1 malformed lines left out" in again


def test_a_changed_file_or_setting_is_prepared_again(tmp_path):
    source = write(tmp_path / "a.csv", SMALL)
    first = run(tmp_path, source)
    paths = {first.path}
    changes = [
        {"buckets": 4},
        {"valid_fraction": 0.5},
        {"test_fraction": 0.5},
        {"split_seed": 1},
        {"on_bad_line": "skip"},
    ]
    for change in [*changes, {"user_column": "time"}]:
        paths.add(run(tmp_path, source, **change).path)
    write(source, [*SMALL, (3, 11)])
    changed = run(tmp_path, source)
    paths.add(changed.path)
    assert len(paths) == 8
    assert (first.manifest.train, changed.manifest.train) == (6, 7)
    write(source, SMALL)
    assert run(tmp_path, source).path == first.path


def test_a_killed_preparation_leaves_no_data_set(tmp_path, monkeypatch):
    source = write(tmp_path / "a.csv", SMALL)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer, "_write_buckets", killed)
        patch.setattr(writer.shutil, "rmtree", lambda *_, **__: None)  # a killed process does not clean up
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, source)
    remaining = list((tmp_path / "cache").iterdir())
    assert len(remaining) == 1 and remaining[0].name.startswith(".a-") and (remaining[0] / "users.parquet").exists()
    assert sorted(raw_pairs(run(tmp_path, source))) == sorted(SMALL)


def test_a_failed_preparation_cleans_up(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "fingerprint", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, write(tmp_path / "a.csv", SMALL))
    assert list((tmp_path / "cache").iterdir()) == []


def _prepare_together(tmp_path, barrier, answers):
    original, writer.exclusive = writer.write, lambda *_: contextlib.nullcontext()  # a file system without locks

    def write_after_barrier(*arguments, **origin):
        barrier.wait(30)  # both have found no folder and write at once
        return original(*arguments, **origin)

    writer.write = write_after_barrier
    answers.put(raw_pairs(run(tmp_path, tmp_path / "a.csv")))


def test_two_preparations_at_once(tmp_path):
    write(tmp_path / "a.csv", SMALL)
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_prepare_together, args=(tmp_path, barrier, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [sorted(answers.get(timeout=60)) for _ in processes]
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert found == [sorted(SMALL)] * 2
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_prepared_folder_is_opened_unchanged(tmp_path):
    prepared = run(tmp_path, write(tmp_path / "a.csv", SMALL))
    assert run(tmp_path, prepared.path) == prepared
    assert (
        prepare(DataConfig(source=str(prepared.path))) == prepared
    )  # defaults differ from the settings of the preparation
    for setting in ({"test": tmp_path / "a.csv"}, {"buckets": 17}, {"test_fraction": 0.5}, {"split_seed": 4}):
        with pytest.raises(UserError, match=f"is prepared already: leave data.{next(iter(setting))} out"):
            run(tmp_path, prepared.path, **setting)


def test_missing_files_name_similar_files(tmp_path):
    write(tmp_path / "gowalla/train.txt", SMALL)
    with pytest.raises(
        UserError, match=rf"data\.source: there is no {tmp_path}/gowala; nearest in {tmp_path}: gowalla"
    ):
        run(tmp_path, tmp_path / "gowala")
    with pytest.raises(UserError, match=r"data\.test: there is no .*/tain\.txt; nearest in .*/gowalla: train\.txt"):
        run(tmp_path, tmp_path / "gowalla", test=tmp_path / "gowalla/tain.txt")
    with pytest.raises(UserError, match=rf"there is no folder {tmp_path}/nowhere either"):
        run(tmp_path, tmp_path / "nowhere/a.txt")


def test_folders_without_a_clear_training_part(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty has no training part \(train\.txt, .*\); it holds no data file"):
        run(tmp_path, tmp_path / "empty")
    write(tmp_path / "d/one.txt", SMALL)
    assert run(tmp_path, tmp_path / "d").manifest.train == 6
    write(tmp_path / "d/two.csv", SMALL)
    with pytest.raises(UserError, match=r"it holds one\.txt, two\.csv: name one as data\.source"):
        run(tmp_path, tmp_path / "d")
    assert run(tmp_path, tmp_path / "d", format="csv").manifest.train == 6
    write(tmp_path / "d/train.txt", SMALL)
    write(tmp_path / "d/train.csv", SMALL)
    with pytest.raises(UserError, match=r"2 files for the train part: .*train\.csv, .*train\.txt; set data\.format"):
        run(tmp_path, tmp_path / "d")


def test_a_folder_instead_of_a_file(tmp_path):
    (tmp_path / "x.txt").mkdir()
    with pytest.raises(UserError, match=r"data\.test: .*x\.txt is a folder without data files"):
        run(tmp_path, write(tmp_path / "a.txt", SMALL), test=tmp_path / "x.txt")


@pytest.mark.parametrize(
    "tree, message",
    [
        ({"separator": '"'}, "separator: a separator is text without quotes, line ends and NUL"),
        ({"separator": ""}, "separator: a separator is text without quotes, line ends and NUL"),
        ({"min_rating": 4}, "rating_column and min_rating go together"),
        ({"user_column": "item"}, "user_column and item_column are both 'item'"),
        ({"test": "x.txt"}, "planted data has its own parts"),
        ({"test_fraction": 1}, "test_fraction: Input should be less than 1"),
        ({"planted": {"interactions": 12_079}}, "planted: interactions must lie between 12080 .* and 22348000"),
        ({"planted": {"users": 2, "items": 3, "interactions": 7}}, "interactions must lie between 4 .* and 6"),
        ({"bucket": 3}, "unknown key 'bucket'; nearest known: buckets"),
    ],
)
def test_configuration_mistakes(tree, message):
    with pytest.raises(UserError, match=message):
        parse(DataConfig, tree)


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", r"manifest\.json is damaged .*; delete the folder and prepare it again"),
        ("\x00", "is damaged"),
        ("[1]", "is not the manifest of a prepared data set"),
        ('{"format_version": 3}', "has format 3; this distrec reads format 2: install a newer one"),
        ('{"format_version": 0}', "has the old format 0"),
        ('{"format_version": 2}', "name: Field required"),
    ],
)
def test_broken_manifests(tmp_path, content, message):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=message):
        run(tmp_path, tmp_path)


def test_a_folder_without_manifest_is_not_a_data_set(tmp_path):
    with pytest.raises(UserError, match=r"is not a prepared data set: it has no manifest\.json"):
        Dataset.open(tmp_path)


def test_manifest_holds_every_count(tmp_path):
    dataset = run(tmp_path, write(tmp_path / "a.csv", SMALL))
    tree = json.loads((dataset.path / "manifest.json").read_text())
    assert {key: tree[key] for key in tree if key not in ("fingerprint", "notes")} == {
        "format_version": 2,
        "split": "random",
        "test_fraction": 0,
        "valid_fraction": 0,
        "split_seed": 0,
        "min_user": 1,
        "min_item": 1,
        "filtered_users": 0,
        "filtered_items": 0,
        "filtered_interactions": 0,
        "id_notes": [],
        "of_untrained_users": {"valid": 0, "test": 0},
        "with_untrained_items": {"valid": 0, "test": 0},
        "name": "a",
        "source": f"{tmp_path}/a.csv (csv)",
        "users": 3,
        "items": 4,
        "buckets": 3,
        "train": 6,
        "valid": 0,
        "test": 0,
        "duplicates": 0,
        "duplicates_by_part": {"train": 0, "valid": 0, "test": 0},
        "overlap": 0,
        "bad_lines": 0,
        "users_without_train": 0,
        "items_without_train": 0,
    }
    assert re.fullmatch("[0-9a-f]{64}", tree["fingerprint"])
