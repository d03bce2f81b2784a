"""Parts of a data set: k-core and splits of raw ids against brute force, what a change of the data moves, errors."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrec.core.config import parse
from distrec.core.errors import UserError
from distrec.data.config import DataConfig
from distrec.data.dataset import Part
from distrec.data.encode import encode_parts, hold_out_parts, k_core
from distrec.data.readers.formats import RawPairs
from tests.data.files import SMALL, raw_pairs, run, write

NAMES = {part: part.name.lower() for part in Part}
METHODS = ("random", "leave_one_out", "leave_last", "time_user", "time_global")
interactions = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9), st.integers(0, 20)), min_size=1, max_size=70)


def encode(triples, test=()):
    """Encode (user, item, time) triples, and (user, item) pairs of a test part if there are any."""
    users, items, times = (pa.chunked_array([pa.array(column)]) for column in zip(*triples, strict=True))
    parts = {Part.TRAIN: RawPairs(users, items, times=times)}
    if test:
        parts[Part.TEST] = RawPairs(*(pa.chunked_array([pa.array(column)]) for column in zip(*test, strict=True)))
    return encode_parts(parts, NAMES)


def decode(parts, part):
    """Return the raw pairs of a part, as text."""
    users, items = parts.pairs(part)
    return {
        (str(parts.user_ids[u]), str(parts.item_ids[i])) for u, i in zip(users.tolist(), items.tolist(), strict=True)
    }


def split(parts, method, fraction=0.3):
    return hold_out_parts(parts, {Part.TEST: fraction, Part.VALID: fraction}, method, 0)


@settings(max_examples=150, deadline=None)
@given(
    triples=interactions, test=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 10)), max_size=20), data=st.data()
)
def test_k_core_against_a_loop(triples, test, data):
    min_user, min_item = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    parts = encode(triples, test)
    left = {(*pair, part) for part in Part for pair in decode(parts, part)}
    while True:
        users, items = [user for user, _, _ in left], [item for _, item, _ in left]
        kept = {row for row in left if users.count(row[0]) >= min_user and items.count(row[1]) >= min_item}
        if kept == left:
            break
        left = kept
    if not any(part == Part.TRAIN for _, _, part in left):
        with pytest.raises(UserError, match=f"data.min_user={min_user}, data.min_item={min_item}: no training"):
            k_core(parts, min_user, min_item)
        return
    core = k_core(parts, min_user, min_item)
    assert {(*pair, part) for part in Part for pair in decode(core, part)} == left
    assert {str(user) for user in core.user_ids} == {user for user, _, _ in left}
    assert {str(item) for item in core.item_ids} == {item for _, item, _ in left}
    earliest = {}
    for user, item, time in sorted(triples, key=lambda triple: triple[2]):
        earliest.setdefault((str(user), str(item)), time)
    users, items = core.pairs(Part.TRAIN)
    kept_pairs = [
        (str(core.user_ids[u]), str(core.item_ids[i])) for u, i in zip(users.tolist(), items.tolist(), strict=True)
    ]
    assert core.times.tolist() == [earliest[pair] for pair in kept_pairs]


@settings(max_examples=100, deadline=None)
@given(triples=interactions, method=st.sampled_from(METHODS[:4]), new=st.sampled_from(["user", "text", "item", "pair"]))
def test_new_ids_and_interactions_move_no_other_users_interactions(triples, method, new):
    """A user with a lower id, an id that turns all ids into text, an item, an interaction of user 0."""
    added = {"user": (-5, 3, 7), "text": ("guest", 3, 7), "item": (99, -8, 2), "pair": (0, 77, 1)}[new]
    if new == "text":
        after = split(encode([(str(user), item, time) for user, item, time in [*triples, added]]), method)
    else:
        after = split(encode([*triples, added]), method)
    before, changed = split(encode(triples), method), str(added[0])
    for part in Part:
        expected = {pair for pair in decode(before, part) if pair[0] != changed}
        assert {pair for pair in decode(after, part) if pair[0] != changed} == expected


@settings(max_examples=60, deadline=None)
@given(triples=interactions, method=st.sampled_from(METHODS), fraction=st.floats(0.01, 0.6))
def test_parts_are_a_partition_in_the_order_of_time(triples, method, fraction):
    encoded = encode(triples)
    try:
        parts = split(encoded, method, fraction)
    except UserError as error:
        assert "leaves none for training" in str(error)
        return
    found = [decode(parts, part) for part in Part]
    assert set().union(*found) == decode(encoded, Part.TRAIN) and sum(map(len, found)) == len(encoded.keys[Part.TRAIN])
    earliest = {}
    for user, item, time in sorted(triples, key=lambda triple: triple[2]):
        earliest.setdefault((str(user), str(item)), time)
    train, valid, test = ([(user, earliest[user, item]) for user, item in pairs] for pairs in found)
    for early, late in ((train, valid), (valid, test), (train, test)) if "time" in method or "last" in method else ():
        for user, time in early:
            assert all(time <= other for one, other in late if one == user or method == "time_global")


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_splits_by_time_of_a_file(tmp_path, name):
    rows = [(user, item, 100 * user + item) for user in (1, 2, 3) for item in range(10)]
    users, items, times = zip(*rows, strict=True)
    table = pa.table({"user": users, "item": items, "time": times})
    if name == "a.csv":
        (tmp_path / name).write_text("user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    else:
        pa.parquet.write_table(table, tmp_path / name)
    last = run(tmp_path, tmp_path / name, split="leave_last", time_column="time", valid_fraction=0.1)
    assert raw_pairs(last, Part.TEST) == [(user, 9) for user in (1, 2, 3)]
    assert raw_pairs(last, Part.VALID) == [(user, 8) for user in (1, 2, 3)]
    share = run(tmp_path, tmp_path / name, split="time_user", time_column="time", test_fraction=0.2)
    assert raw_pairs(share, Part.TEST) == [(user, item) for user in (1, 2, 3) for item in (8, 9)]
    lines = []
    late = run(tmp_path, tmp_path / name, lines.append, split="time_global", time_column="time", test_fraction=0.4)
    assert sorted(raw_pairs(late, Part.TEST)) == [(2, 8), (2, 9), *((3, item) for item in range(10))]
    assert any("1 of 3 users have no training interactions: they are not evaluated (10 of 12 test" in x for x in lines)
    assert run(tmp_path, tmp_path / name, split="leave_one_out", valid_fraction=0).manifest.test == 3


def test_filtered_counts_are_logged(tmp_path):
    lines = []
    source = write(tmp_path / "a.csv", [*SMALL, (9, 10), (9, 2), (9, 2)])
    dataset = run(tmp_path, source, lines.append, min_user=2, min_item=2)
    # Items 7 and 30 occur once; without them user 3 has one interaction, and so has user 2 from the start.
    assert sorted(raw_pairs(dataset)) == [(1, 2), (1, 10), (9, 2), (9, 10)]
    text = "data.min_user=2, data.min_item=2: 2 users, 2 items, 4 interactions left out"
    assert f"data: {text}" in lines and ("note", text) in dataset.summary()
    with pytest.raises(UserError, match=r"data\.min_user=4, data\.min_item=1: no training interaction is left"):
        run(tmp_path, source, min_user=4)


@pytest.mark.parametrize(
    "tree, message",
    [
        ({"split": "leave_last"}, "split=leave_last: planted interactions have no times"),
        ({"source": "a.csv", "split": "time_user"}, "split=time_user needs the times .* time_column"),
        ({"source": "a.csv", "time_column": "t"}, "time_column does nothing with split=random"),
        ({"split": "leave_one_out", "test_fraction": 0.2}, "leave_one_out holds out one interaction of each user"),
        ({"split": "leave_one_out", "valid_fraction": 0.2}, "leave test_fraction and valid_fraction out"),
        ({"split": "last"}, "split: Input should be 'random', 'leave_one_out', 'leave_last'"),
        ({"min_user": 0}, "min_user: Input should be greater than or equal to 1"),
    ],
)
def test_mistakes_about_splits(tree, message):
    with pytest.raises(UserError, match=message):
        parse(DataConfig, tree)


def test_a_split_of_a_source_that_has_all_parts_is_an_error(tmp_path):
    for part in ("train", "valid", "test"):
        write(tmp_path / f"d/{part}.csv", SMALL)
    with pytest.raises(UserError, match=r"data\.split=leave_one_out does nothing: d has its parts already"):
        run(tmp_path, tmp_path / "d", split="leave_one_out")


def test_all_interactions_at_one_time(tmp_path):
    source = write(tmp_path / "a.csv", SMALL)  # all at time 9
    with pytest.raises(UserError, match=r"time_global: all 6 interactions to split are of time 9"):
        run(tmp_path, source, split="time_global", time_column="time", test_fraction=0.2)
    assert run(tmp_path, source, split="time_user", time_column="time", test_fraction=0.5).manifest.test in (2, 3)
    assert np.all(run(tmp_path, source, split="leave_last", time_column="time", valid_fraction=0).user_degrees() >= 1)


def test_other_names_of_the_validation_part_and_files_that_are_not_read(tmp_path):
    for name in ("train.csv", "validation.csv", "test.csv"):
        write(tmp_path / "d" / name, SMALL[:2] if name == "train.csv" else [(3, len(name))])
    (tmp_path / "d/item_list.txt").write_text("org_id remap_id\n")
    lines = []
    manifest = run(tmp_path, tmp_path / "d", lines.append, test_fraction=0.2).manifest
    assert (manifest.train, manifest.valid, manifest.test) == (2, 1, 1)
    assert "data: not read, as no part has such a name: item_list.txt" in lines
    assert f"data: data.test_fraction does nothing: the test part is {tmp_path}/d/test.csv" in lines
    write(tmp_path / "d/val.csv", SMALL)
    with pytest.raises(UserError, match=r"2 files for the valid part: .*val\.csv, .*validation\.csv"):
        run(tmp_path, tmp_path / "d")


def test_held_out_parts_alone_are_not_trained_on(tmp_path):
    write(tmp_path / "d/test.csv", SMALL)
    with pytest.raises(UserError, match=r"no training part .*; it holds held-out parts alone"):
        run(tmp_path, tmp_path / "d")


def test_a_link_to_nowhere(tmp_path):
    (tmp_path / "a.csv").symlink_to("/nowhere.csv")
    with pytest.raises(UserError, match=r"a\.csv is a link to /nowhere\.csv, which does not exist"):
        run(tmp_path, tmp_path / "a.csv")
