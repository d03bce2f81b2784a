"""Ids that do not meet: warnings with examples, on the collected cases and on others of their kinds."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distrec.data.dataset import Part
from tests.data.files import raw_pairs, run

CASES = Path(__file__).parent / "cases"
FEW, NONE, SPELT = "only 1 of the 4", "none of the", "written in two ways"


def prepared(tmp_path, parts):
    """Prepare files from {name: content}, content text or a table; return the data set and the warnings."""
    (tmp_path / "d").mkdir()
    for name, content in parts.items():
        if isinstance(content, pa.Table):
            pq.write_table(content, tmp_path / "d" / name)
        else:
            (tmp_path / "d" / name).write_text(content)
    dataset = run(tmp_path, tmp_path / "d")
    return dataset, dataset.manifest.id_notes


def text(users, items="abc"):
    return "user,item\n" + "".join(f"{user},{item}\n" for user in users for item in items)


@pytest.mark.parametrize(
    "case, users, items, examples",
    [
        ("04_types", [NONE, SPELT], [NONE, SPELT], ("'1.0'", "'1'", "test.csv", "train.csv")),
        ("04_types_items", [], [NONE, SPELT], ("'0.0'", "'0'")),
        ("04_types_mixed", [SPELT], [], ("'1' (mixed.csv) and '1.0' (mixed.csv)",)),
        ("22_oneuser", [], [NONE], ("'beer'", "'milk'")),
        ("23_oneitem", [], [NONE], ("'rum'", "'tea'")),
        ("10_cold", [], [], ()),
    ],
)
def test_collected_cases(tmp_path, case, users, items, examples):
    lines = []
    dataset = run(tmp_path, CASES / case, lines.append)
    notes = dataset.manifest.id_notes
    for noun, expected in (("users", users), ("items", items)):
        found = [note for note in notes if noun in note]
        assert [text in note for text, note in zip(expected, found, strict=True)] == [True] * len(expected)
    assert all(example in " ".join(notes) for example in examples)
    assert all(f"data: {note}" in lines for note in notes)
    again = []
    run(tmp_path, CASES / case, again.append)
    assert again[1:] == lines[1:]  # the same is said of a cached folder


@pytest.mark.parametrize(
    "train, test, expected",
    [
        ([1, 2, 3], [1, 2, 3], []),
        (["01", "02", "03"], [1, 2, 3], [(NONE, "'01'", "'1'"), (SPELT, "'01'", "'1'")]),
        (["1e3", "2000"], [1000, 2000], [(SPELT, "'1000' (test.csv)", "'1e3' (train.csv)")]),
        (["+7", "8"], ["7", "8"], [(SPELT, "'+7'", "'7'")]),
        (["-1.50", "2"], ["-1.5", "2.00"], [(NONE, "'-1.50'", "'-1.5'"), (SPELT, "'-1.50'", "'-1.5'")]),
        (["u1", "u2", "u3"], [1, 2, 3, "u3"], [(FEW, "'u1'", "'1'")]),
        (["Ann", "Bob"], ["ann", "bob"], [(NONE, "'Ann'", "'ann'")]),
        (["1.2", "1.20.3", "v1.0", "1.0.0"], ["1.2", "v1.0"], []),
        ([9007199254740993, "9007199254740992.0"], ["9007199254740993"], []),
    ],
)
def test_users_of_two_text_files(tmp_path, train, test, expected):
    dataset, notes = prepared(tmp_path, {"train.csv": text(train), "test.csv": text(test)})
    assert dataset.manifest.users == len({str(user) for user in [*train, *test]})
    assert len(notes) == len(expected)
    assert all(part in note for note, parts in zip(notes, expected, strict=True) for part in ("users", *parts))


def test_one_rule_for_all_formats(tmp_path):
    """Numbers of a typed column are their shortest decimal text; the text of a text file is kept."""
    floats = pa.table({"user": pa.array([1.0, 2.0, None]), "item": pa.array([3, 4, 5])}).slice(0, 2)
    dataset, notes = prepared(tmp_path, {"train.parquet": floats, "test.csv": "user,item\n1,4\n2,3\n"})
    assert notes == () and raw_pairs(dataset, Part.TEST) == [(1, 4), (2, 3)]


def test_typed_numbers_beside_text_with_a_fraction(tmp_path):
    table = pa.table({"user": pa.array([1, 2]), "item": pa.array([3, 4])})
    dataset, notes = prepared(tmp_path, {"train.parquet": table, "test.csv": "user,item\n1.0,4\n2.0,3\n"})
    assert dataset.manifest.users_without_train == 2
    assert notes[0].startswith("none of the 2 users of test.csv is known from train.parquet: ") and "'1.0'" in notes[0]
    assert (
        "2 numbers are written in two ways among the users, such as '1' (train.parquet) and '1.0' (test.csv)"
        in notes[1]
    )


def test_two_unicode_forms_of_one_name(tmp_path):
    dataset, notes = prepared(tmp_path, {"train.csv": "user,item\njos\u00e9,a\njose\u0301,a\nana,b\n"})
    assert dataset.manifest.users == 3
    assert len(notes) == 1 and "1 id is written in two Unicode forms among the users, such as 'jose\\u0301'" in notes[0]
