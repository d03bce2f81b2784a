"""Files as users have them: recognised, read as written, and described in one line; what is open is an error."""

import bz2
import gzip
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distrec.core.errors import UserError
from distrec.data import source_files
from distrec.data.config import DataConfig
from distrec.data.dataset import Part
from distrec.data.readers import formats
from tests.data.files import SMALL, raw_pairs, run, write

CASES = Path(__file__).parent / "cases"
WEIGHTED = [(user, 100 + user % 7 + item, 1 + (user * item) % 5) for user in range(30) for item in range(0, 40, 7)]


def read(source, **settings) -> dict[Part, formats.RawPairs]:
    """Find, recognise and read the files of a source."""
    config = DataConfig(source=str(source), **settings)
    return {part: formats.read(files, config) for part, files in source_files.find(config).parts.items()}


def train(source, **settings) -> list[tuple]:
    """Return the training pairs as read."""
    raw = read(source, **settings)[Part.TRAIN]
    return list(zip(raw.users.to_pylist(), raw.items.to_pylist(), strict=True))


def notes(source, **settings) -> str:
    return "\n".join(read(source, **settings)[Part.TRAIN].notes)


def columns(path: Path, separator: str) -> list[tuple]:
    """Return the first two columns of every line, the oracle for files without quotes."""
    return [tuple(line.split(separator)[:2]) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "name, separator",
    [
        ("02_headerless/ratings.csv", ","),
        ("02_headerless/ratings.dat", "::"),
        ("02_headerless/u.data", "\t"),
        ("17_ncf/ml.train.rating", "\t"),
        ("16_selfrec/train.txt", " "),
    ],
)
def test_files_without_a_header(name, separator):
    path = CASES / name
    expected = columns(path, separator)
    assert train(path) == train(path, header=False) == train(path, format="pairs") == expected
    assert train(path, separator=separator) == train(path, columns="user,item,stars") == expected
    assert train(path, user_column="2", item_column="1") == [(item, user) for user, item in expected]
    assert train(path, columns="item,user,-") == [(item, user) for user, item in expected]
    assert f"{path.name}: read as pairs without a header" in notes(path)
    assert f"{len(expected)} interactions" in notes(path)


@pytest.mark.parametrize(
    "name, separator",
    [
        *(("02_tab/tab.csv", text) for text in (r"\t", "\t")),
        *((f"20_sep/{name}.csv", mark) for name, mark in (("pipe", "|"), ("colon", ":"), ("hash", "#"), ("semi", ";"))),
        *((f"20_sep/{name}.csv", mark) for name, mark in (("caret", "^"), ("tilde", "~"), ("space", " "))),
        ("20_sep/hive.csv", r"\x01"),
        ("20_sep/hive.csv", "\x01"),
    ],
)
def test_separators_are_literal_and_recognised(name, separator):
    expected = [("1", "2"), ("1", "3"), ("2", "2"), ("2", "4")][: 2 if "hive" in name else 4]
    assert train(CASES / name, separator=separator) == train(CASES / name) == expected
    with pytest.raises(UserError, match="no column 'user'; its columns: user.item"):
        train(CASES / name, separator="@@")


@pytest.mark.parametrize("separator", ["::", "§", "||", "\\", "~|~", "\x02"])
def test_separators_of_any_text(tmp_path, separator):
    path = tmp_path / "a.csv"
    path.write_text(
        separator.join(("user", "title", "item")) + "\n" + separator.join(("u", "x", 'Toy: "Story"')) + "\n"
    )
    assert train(path, separator=separator, quoting=False) == [("u", 'Toy: "Story"')]
    path.write_text(f'user{separator}item\n"a{separator}b"{separator}c\n1{separator}2\n')
    assert train(path, separator=separator, quoting=True) == [(f"a{separator}b", "c"), ("1", "2")]


@pytest.mark.parametrize("suffix", ["txt", "csv", "data"])
@pytest.mark.parametrize("third", ["{2}", "{2}.5", "{2} 88{2}000000"])
def test_pairs_with_weights_are_no_lists(tmp_path, suffix, third):
    path = tmp_path / f"a.{suffix}"
    path.write_text("".join(f"{{0}} {{1}} {third}\n".format(*row) for row in WEIGHTED))
    assert train(path) == [(str(user), str(item)) for user, item, _ in WEIGHTED]


def test_lists_of_different_lengths_and_long_ones_of_one_length_are_lists(tmp_path):
    path = tmp_path / "a.data"
    path.write_text("1 5 6\n2 5\n3 7 8 9\n")
    assert train(path) == [(1, 5), (1, 6), (2, 5), (3, 7), (3, 8), (3, 9)]
    path.write_text("".join(f"{user} " + " ".join(map(str, range(20))) + "\n" for user in range(9)))
    assert len(train(path)) == 180
    assert train(CASES / "16_selfrec_ui/train.txt") == [
        (int(user), int(item)) for user, item in columns(CASES / "16_selfrec_ui/train.txt", "\t")
    ]


@pytest.mark.parametrize("lines", ["1 5 6\n2 5 7\n3 7 8\n", "1 5 6\n1 7 8\n2 5\n2 8 9\n"])
def test_lines_that_fit_two_formats_are_an_error_that_names_both(tmp_path, lines):
    path = tmp_path / "a.txt"
    path.write_text(lines)
    with pytest.raises(UserError, match=r"a\.txt fits two formats: lightgcn .* pairs .*; set data\.format=lightgcn or"):
        train(path)
    assert len(train(path, format="lightgcn")) == sum(len(line.split()) - 1 for line in lines.splitlines())
    if lines.count("\n") == 3:
        assert train(path, format="pairs") == columns(path, " ")


def test_a_part_that_fits_two_formats_follows_the_others(tmp_path):
    parts = read(CASES / "16_selfrec")
    assert [len(parts[part].users) for part in (Part.TRAIN, Part.TEST)] == [200, 40]
    one_each = "1 5 6\n2 5 7\n3 7 8\n"
    (tmp_path / "test.txt").write_text(one_each)
    (tmp_path / "train.txt").write_text("1 7\n2 5 6 9\n3 1 2\n")
    assert len(read(tmp_path)[Part.TEST].users) == 6
    (tmp_path / "train.txt").write_text("".join("{} {} {}\n".format(*row) for row in WEIGHTED))
    assert len(read(tmp_path)[Part.TEST].users) == 3


@pytest.mark.parametrize(
    "header, body, expected",
    [
        ("user_id:token,item_id:token,rating:float", "1,2,3", ("1", "2")),
        ("user_id:token item_id:token", "1 2", ("1", "2")),
        ("item_id:token|user_id:token", "1|2", ("2", "1")),
    ],
)
def test_recbole_header_with_another_separator(tmp_path, header, body, expected):
    for name in ("a.inter", "a.csv"):
        (tmp_path / name).write_text(f"{header}\n{body}\n")
        assert train(tmp_path / name) == [expected]


def test_ratings_and_labels_are_mentioned_and_select(tmp_path):
    path = CASES / "08_rating/r.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
    assert len(train(path)) == len(rows) == 64
    assert "column rating (1, 2, 3, ...) is not used, every line counts as an interaction" in notes(path)
    high = [(user, item) for user, item, rating in rows if float(rating) >= 4]
    settings = {"rating_column": "rating", "min_rating": 4}
    assert train(path, **settings) == train(path, rating_column="3", min_rating=4) == high
    assert f"{len(high)} of 64 interactions have rating >= 4; the others are left out" in notes(path, **settings)
    with pytest.raises(UserError, match="none of its 64 interactions has column 3 >= 6"):
        train(path, rating_column="3", min_rating=6)
    label = CASES / "08_rating/label/label.inter"
    ones = [tuple(line.split("\t")[:2]) for line in label.read_text().splitlines()[1:] if line.endswith("\t1")]
    assert train(label, rating_column="label", min_rating=1) == ones
    pq.write_table(pa.table({"user": [1, 2, 3], "item": [4, 5, 6], "stars": [1.5, None, 5]}), tmp_path / "a.parquet")
    assert "column stars is not used" in notes(tmp_path / "a.parquet")
    settings = {"rating_column": "stars", "min_rating": 2, "on_bad_line": "skip"}
    assert train(tmp_path / "a.parquet", **settings) == [(3, 6)]
    (tmp_path / "a.csv").write_text("user,item,stars\n1,2,good\n")
    with pytest.raises(UserError, match=r"line 2: the rating is not a number"):
        train(tmp_path / "a.csv", rating_column="stars", min_rating=2)


@pytest.mark.parametrize(
    "texts, expected",
    [
        (["88", "9007199254740993"], [88, 9007199254740993]),
        (["1.5", "2"], [1.5, 2]),
        (["2024-05-01", "2024-05-01T12:30:00"], [1714521600_000000, 1714566600_000000]),
        (["2024-05-01T00:00:00Z", "2024-05-01 02:00:00+02:00"], [1714521600_000000] * 2),
    ],
)
def test_times(tmp_path, texts, expected):
    (tmp_path / "a.csv").write_text("user,item,t\n" + "".join(f"1,2,{text}\n" for text in texts))
    settings = {"time_column": "t", "split": "leave_last"}
    assert read(tmp_path / "a.csv", **settings)[Part.TRAIN].times.to_pylist() == expected
    (tmp_path / "a.csv").write_text("user,item,t\n1,2,5\n1,3,yesterday\n")
    with pytest.raises(UserError, match="line 3: the time is not a number or a date"):
        read(tmp_path / "a.csv", **settings)


def test_records_of_several_lines_are_counted_and_quoting_can_be_off(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('user,item,t\n1,2,"a\nb"\n3,4,"x\n5,6,z"\n7,8,z\n')
    assert train(path) == [("1", "2"), ("3", "4"), ("7", "8")]
    assert "2 records of several lines, as quotes enclose line ends, the first in line 2 of a.csv" in notes(path)
    raw = read(path, quoting=False, on_bad_line="skip")[Part.TRAIN]
    assert (raw.users.to_pylist(), raw.bad_lines) == (["1", "3", "5", "7"], 1)


def test_missing_values(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("user,item\nnan,3\nNULL,4\n\\N,5\n1,2\nNone,7\n")
    found = r"4 interactions have user ids that may stand for missing ones; if they do, set data.null_values="
    assert found + r"'nan,NULL,\N,None'" in notes(path)
    settings = {"null_values": r"nan,NULL,\N,None"}
    assert train(path, **settings, on_bad_line="skip") == [("1", "2")]
    with pytest.raises(UserError, match=r"line 2: the user id is missing: 'nan,3'"):
        train(path, **settings)
    pq.write_table(pa.table({"user": ["a", "NULL"], "item": [1, 2]}), tmp_path / "a.parquet")
    assert train(tmp_path / "a.parquet", **settings, on_bad_line="skip") == [("a", 1)]


def test_compressed_files(tmp_path):
    assert len(train(CASES / "12_gz/x.csv.gz")) == 48
    assert {part: len(raw.users) for part, raw in read(CASES / "12_gz/folder").items()} == {
        Part.TRAIN: 48,
        Part.TEST: 48,
    }
    text = b"user,item\n1,2\n3,4\n"
    contents = {
        "two_members.csv.gz": gzip.compress(text[:14]) + gzip.compress(text[14:]),
        "a.csv.zst": pa.compress(text, codec="zstd").to_pybytes(),
        "a.csv.bz2": bz2.compress(text),
        "not_compressed.csv.gz": text,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert train(tmp_path / name) == [("1", "2"), ("3", "4")]
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(text * 1000)[:-20])
    with pytest.raises(UserError, match=r"cannot read .*cut\.csv\.gz: Truncated"):
        train(tmp_path / "cut.csv.gz")


def test_part_files_are_read_as_one(tmp_path):
    spark = CASES / "18_spark/interactions.parquet"
    assert len(train(spark)) == len(train(f"{spark}/*.parquet")) == 240
    assert "interactions.parquet: 2 files read as parquet" in notes(spark)
    expected = [("1", "2"), ("1", "3"), ("2", "3")]
    hive = tmp_path / "hive"
    for name, text in (("part-0", "1\x012\n1\x013\n"), ("part-1", ""), ("part-2", "2\x013\n"), ("_SUCCESS", "")):
        (hive / f"train/{name}").parent.mkdir(parents=True, exist_ok=True)
        (hive / f"train/{name}").write_text(text)
    (hive / "train/.part-0.crc").write_bytes(b"crc\0")
    shutil.copytree(hive / "train", hive / "test")
    assert train(hive) == train(hive / "train") == train(f"{hive}/train/*") == expected
    assert len(read(hive)[Part.TEST].users) == 3
    days = tmp_path / "days"
    for day, text in (("2024-01-01", "user,item\n1,2\n1,3\n"), ("2024-01-02", "item,user\n3,2\n")):
        write(days / f"date={day}/x", SMALL, fmt=".txt").rename(days / f"date={day}/part-0.csv")
        (days / f"date={day}/part-0.csv").write_text(text)
        (days / f"{day}.csv").write_text(text)
    assert train(days) == train(f"{days}/*.csv") == train(f"{days}/**/part-0.csv") == expected
    with pytest.raises(UserError, match=r"data\.source: no file matches .*\*\.tsv"):
        train(f"{days}/*.tsv")


@pytest.mark.parametrize(
    "content, message",
    [
        ("user,item\n1,2\n".encode("utf-16"), "is UTF-16 text: convert it to UTF-8, for example with iconv -f UTF-16"),
        ("user,item\n1,2\n".encode("utf-16-be"), "is UTF-16BE text"),
        (gzip.compress("1 2\n".encode("utf-16")), "is UTF-16 text"),
        (b"PK\x03\x04rest", "is a zip archive or an Excel sheet"),
        (bytes(range(256)), "is binary data, not text"),
        (b"1,2,3,4,5,6,7,8,9\n", "has 9 columns and no header: set data.header=false if"),
        (b"1\t2 3\n1\t3 3\n", "separates columns by tabs and by blanks"),
        (b"ana,tea\nbob,rum\n", "no column 'user'; its columns: ana, tea.*data.header=false if the file has none"),
        (b"1,2\n1,3\n", None),
    ],
)
def test_what_a_file_is_not(tmp_path, content, message):
    for name in ("a.csv", "a.txt"):
        (tmp_path / name).write_bytes(content)
        if message is None:
            assert train(tmp_path / name) == [("1", "2"), ("1", "3")]
        else:
            with pytest.raises(UserError, match=message):
                train(tmp_path / name)


def test_headers_marks_and_blank_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbf1;2;3,5\r\n1;4;4,5\r\n\r\n  \r\n\n")
    assert train(path) == [("1", "2"), ("1", "4")]
    path.write_text("a,b,c\nx,y,z\n")
    with pytest.raises(UserError, match=r"the first line may be a header or data: a, b, c; set data\.header=true or"):
        train(path, user_column="3", item_column="1")
    assert train(path, user_column="3", item_column="1", header=True) == [("z", "x")]
    assert train(path, columns="-,user,item") == [("b", "c"), ("y", "z")]
    assert train(path, columns="-,user,item", header=True) == [("y", "z")]
    path.write_text("1,2,2024-01-01 10:00:00\n1,3,2024-01-01 11:00:00\n")
    assert train(path) == [("1", "2"), ("1", "3")]


def test_recbole_sequences_of_blanks_are_no_lists(tmp_path):
    header = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
    (tmp_path / "a.inter").write_text(header + "1\t2 3\t4\n1\t2 3 4\t5\n2\t9\t4\n")
    assert sorted(raw_pairs(run(tmp_path, tmp_path / "a.inter"))) == [(1, 4), (1, 5), (2, 4)]


@pytest.mark.parametrize(
    "name, values, advice",
    [
        ("is_click", "01", "data.rating_column=is_click data.min_rating=..."),
        ("Bought", ("True", "False"), "data.rating_column=Bought data.min_rating=..."),
        ("event", ("view", "buy"), "write a file of those that should count"),
    ],
)
def test_labels_and_events_that_are_not_used_are_mentioned(tmp_path, name, values, advice):
    (tmp_path / "a.csv").write_text(f"user,item,{name}\n" + "".join(f"1,{n},{v}\n" for n, v in enumerate(values)))
    note = next(note for note in run(tmp_path, tmp_path / "a.csv").manifest.notes if "is not used" in note)
    assert f"column {name} (" in note and note.endswith(advice) or f"{advice} leaves out" in note
