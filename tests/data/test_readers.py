"""Every format gives the same data; every malformed line is found, shown and counted."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distrec.core.errors import UserError
from distrec.data.dataset import Part
from distrec.data.readers import delimited, lightgcn
from distrec.data.readers.bad_lines import BadLines
from tests.data.files import SMALL, raw_pairs, run, write

BIG = 2**63


@pytest.mark.parametrize("name", ["a.txt", "a.inter", "a.csv", "a.tsv", "a.parquet"])
def test_every_format_gives_the_same_data(tmp_path, name):
    expected = run(tmp_path, write(tmp_path / "reference.txt", SMALL)).manifest.fingerprint
    dataset = run(tmp_path, write(tmp_path / name, SMALL))
    assert sorted(raw_pairs(dataset)) == sorted(SMALL)
    assert dataset.manifest.fingerprint == expected
    assert dataset.manifest.name == "a"


def test_format_setting_overrides_the_name(tmp_path):
    path = write(tmp_path / "log.csv", SMALL, fmt=".txt")
    assert sorted(raw_pairs(run(tmp_path, path, format="lightgcn"))) == sorted(SMALL)


def test_lightgcn_blank_lines_users_without_items_tabs_bom_and_carriage_returns(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf1 5 6\r\n\r\n2\n   \n3\t5  007 \n4 9")
    dataset = run(tmp_path, path)
    assert sorted(raw_pairs(dataset)) == [(1, 5), (1, 6), (3, 5), (3, 7), (4, 9)]


def test_lightgcn_signed_and_64_bit_ids(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(f"-1 5 {BIG - 1}\n{-BIG} +6\n")
    assert sorted(raw_pairs(run(tmp_path, path))) == [(-BIG, 6), (-1, 5), (-1, BIG - 1)]


BAD_LIGHTGCN = [
    (b"1 2\n3 x 4\n5 6\n", 2, "'x' is not an integer id: '3 x 4'"),
    (b"\n\n1 2\n3 4.5\n5 6\n", 4, "'4.5' is not an integer id: '3 4.5'"),
    (b"1 2\n5 6\n7 \xff8", 3, r"'\\xff8' is not an integer id: '7 \\xff8'"),
    (f"1 2\n3 {BIG}\n5 6\n".encode(), 2, f"the id {BIG} does not fit 64 bits: '3 {BIG}'"),
    (b"1 2\n3 " + b"9" * 5000 + b"\n5 6\n", 2, f"the id {'9' * 40} does not fit 64 bits: '3 {'9' * 118}...'"),
]


@pytest.mark.parametrize("content, line, message", BAD_LIGHTGCN)
def test_lightgcn_bad_line(tmp_path, content, line, message):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        run(tmp_path, path)
    assert str(caught.value) == f"{path}, line {line}: {message}; data.on_bad_line=skip leaves such lines out"
    dataset = run(tmp_path, path, on_bad_line="skip")
    assert sorted(raw_pairs(dataset)) == [(1, 2), (5, 6)]
    assert dataset.manifest.bad_lines == 1


BAD_CSV = [
    (b"user,item\n1,2\n3\n5,6\n", 3, "1 column where the header has 2: '3'"),
    (b"user,item\n1,2\n\n3,4,9\n5,6\n", 4, "3 columns where the header has 2: '3,4,9'"),
    (b"user,item\n1,2\n,4\n5,6\n", 3, "empty user id: ',4'"),
    (b"user,item\n1,2\n3, \n5,6\n", 3, "empty item id: '3, '"),
    (b'user,item\n1,2\n3,""\n5,6\n', 3, "empty item id: '3,\"\"'"),
    (b"user,item\n1,2\n5,6\nz\xe9,4\n", 4, r"the user id is not UTF-8: 'z\\xe9,4'"),
    (b'user,item\n1,2\n3,"4"x\n5,6\n7,\n', 3, "',' expected after '\"': '3,\"4\"x'"),
]


@pytest.mark.parametrize("content, line, message", BAD_CSV)
def test_csv_bad_line(tmp_path, content, line, message):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        run(tmp_path, path)
    assert str(caught.value) == f"{path}, line {line}: {message}; data.on_bad_line=skip leaves such lines out"
    dataset = run(tmp_path, path, on_bad_line="skip")
    assert sorted(raw_pairs(dataset)) == [(1, 2), (5, 6)]
    assert dataset.manifest.bad_lines == content.count(b"\n7,") + 1


@pytest.mark.parametrize("policy", ["error", "skip"])
@pytest.mark.parametrize(
    "content, line",
    [
        ('user,item,t\n1,2,x\n3,4,"y\n5,6,z\n7,8,z\n', 3),  # the quote would span all lines below
        ('user,item,t\n1,2,"x\n3,4,z\n5,6,"y\n7,8,z\n', 2),  # here all lines up to the next unclosed quote
        ('user,t,item\n1,x,2\n3,x,"4\n5,x,6\n', 3),
    ],
)
def test_csv_unclosed_quote_is_an_error_under_either_policy(tmp_path, policy, content, line):
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"a\.csv, line {line}: a quote is not closed"):
        run(tmp_path, path, on_bad_line=policy)


def test_csv_quotes_separators_line_ends_and_column_names(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbf"who";title;"what; or which"\r\n"a;b";"two\nlines";"c""d"\r\n\r\n e ;"";f\r\n')
    dataset = run(tmp_path, path, separator=";", user_column="who", item_column="what; or which")
    assert sorted(raw_pairs(dataset)) == [("a;b", 'c"d'), ("e", "f")]


def test_csv_blank_lines_above_the_header(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("\n\nuser,item\n1,2\n")
    assert raw_pairs(run(tmp_path, path)) == [(1, 2)]


def test_csv_accepts_invalid_utf8_in_other_columns(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"user,title,item\n1,caf\xe9,2\n3,x,\n")
    assert run(tmp_path, path, on_bad_line="skip").manifest.bad_lines == 1
    path.write_bytes(b"user,title,item\n1,caf\xe9,2\n3,x,4\n")
    assert run(tmp_path, path).manifest.bad_lines == 0


def test_csv_missing_or_duplicate_column(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("time,itme,user\n1,2,3\n")
    with pytest.raises(UserError, match=r"a\.csv has no column 'item'; its columns: itme, time, user\. The first line"):
        run(tmp_path, path)
    path.write_text("item,user,item\n1,2,3\n")
    with pytest.raises(UserError, match=r"a\.csv has 2 columns named 'item'"):
        run(tmp_path, path)


def test_csv_empty_file_and_header_alone(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("")
    with pytest.raises(UserError, match=r"a\.csv is empty: it must start with a header line"):
        run(tmp_path, path)
    path.write_text("user,item\n")
    with pytest.raises(UserError, match=r"a\.csv holds no interaction"):
        run(tmp_path, path)


def test_recbole_bad_line_and_header(tmp_path):
    path = tmp_path / "a.inter"
    path.write_text('user_id:token\titem_id:token\tname:token_seq\n1\t2\t"open\n3\t4\n5\t6\t"\n')
    with pytest.raises(UserError, match=r"a\.inter, line 3: 2 columns where the header has 3: '3\\t4'"):
        run(tmp_path, path)
    dataset = run(tmp_path, path, on_bad_line="skip")
    assert sorted(raw_pairs(dataset)) == [(1, 2), (5, 6)]  # quotes are plain characters in this format
    assert dataset.manifest.bad_lines == 1
    path.write_text("user:token\titem_id:token\n1\t2\n")
    with pytest.raises(UserError, match="no column 'user_id'; its columns: user, item_id"):
        run(tmp_path, path)


PARQUET_BAD = [
    (pa.array([1, None, 5]), "None, 4", "user"),
    (pa.array([1.0, float("nan"), 5.0]), "nan, 4", "user"),
    (pa.array(["1", " ", "5"]), " , 4", "user"),
    (pa.array(["1", "", "5"]).dictionary_encode(), ", 4", "user"),
    (pa.array([b"1", b"\xff", b"5"]), "\\\\xff, 4", "user"),
]


@pytest.mark.parametrize("users, text, which", PARQUET_BAD)
def test_parquet_bad_row(tmp_path, users, text, which):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"user": users, "item": [2, 4, 6]}), path)
    with pytest.raises(UserError) as caught:
        run(tmp_path, path)
    assert str(caught.value).startswith(f"{path}, row 2: the {which} id is missing, empty or not UTF-8: '{text}';")
    dataset = run(tmp_path, path, on_bad_line="skip")
    assert raw_pairs(dataset) == [(1, 2), (5, 6)]
    assert dataset.manifest.bad_lines == 1


def test_parquet_string_that_is_not_utf8(tmp_path):
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"a", b"\xfe"]).buffers())
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"user": [1, 2], "item": broken}), path)
    with pytest.raises(UserError, match=r"row 2: the item id is missing, empty or not UTF-8: '2, \\\\xfe'"):
        run(tmp_path, path)


def test_parquet_wrong_types_and_not_a_parquet_file(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"user": [1.5], "item": [2]}), path)
    with pytest.raises(UserError, match="column 'user' holds fractions"):
        run(tmp_path, path)
    pq.write_table(pa.table({"user": [1], "item": [[2]]}), path)
    with pytest.raises(UserError, match="column 'item' holds list<.*; ids are integers or strings"):
        run(tmp_path, path)
    pq.write_table(pa.table({"user": [1], "thing": [2]}), path)
    with pytest.raises(UserError, match="no column 'item'; its columns: user, thing"):
        run(tmp_path, path)
    path.write_text("user,item\n1,2\n")
    with pytest.raises(UserError, match=r"a\.parquet is not a readable Parquet file"):
        run(tmp_path, path)


def test_parquet_unsigned_ids_beyond_63_bits_keep_their_digits(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"user": pa.array([BIG, 7], pa.uint64()), "item": pa.array([1, 2], pa.uint8())}), path)
    assert sorted(raw_pairs(run(tmp_path, path))) == [("7", 2), (str(BIG), 1)]


token = st.one_of(st.integers(0, 99).map(str), st.sampled_from(["x", "-3", "1" * 19, "", "9" * 25]))


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(st.lists(token, max_size=4).map(" ".join), max_size=6), end=st.sampled_from(["", "\n"]))
def test_lightgcn_fast_and_slow_reader_agree(lines, end):
    data = ("\n".join(lines) + end).encode()
    fast = lightgcn._read_fast(data)
    bad = BadLines("a.txt", "skip")
    slow = lightgcn._read_lines(data, bad)
    if fast is not None:
        assert bad.count == 0
        np.testing.assert_array_equal(fast, slow)
    else:
        assert any(word in "".join(lines) for word in ("x", "-", "1" * 19, "9" * 19))


good_field = st.sampled_from(["1", "22", "a b", '"q"', '"a,b"', "é"])
odd_field = st.sampled_from(["", " ", '"', '""', '"x\ny"', 'x"', '"y', '"c""d"', '"e"f', "g\rh", '"\r"'])
row = st.one_of(st.tuples(good_field, good_field), st.lists(good_field | odd_field, min_size=1, max_size=3))


@settings(max_examples=400, deadline=None)
@given(rows=st.lists(row.map(",".join), max_size=5), end=st.sampled_from(["", "\n", "\r\n"]))
@example(rows=['1,",1'], end="")
@example(rows=["1,2", '"a,b","q"', "", '22,"q"'], end="\r\n")
def test_csv_fast_and_slow_reader_agree(rows, end):
    data = ("\n".join(["user,item", *rows]) + end).encode()
    dialect, index = delimited.Dialect(",", True), {"user": 0, "item": 1}
    fast = delimited._read_fast(data, dialect, 2, index)
    if fast is not None:
        slow = delimited._read_records(data, dialect, 2, index, BadLines("a.csv", "error"))
        assert {key: fast[key].to_pylist() for key in fast} == {key: slow[key].to_pylist() for key in slow}


def test_csv_plain_quotes_are_read_fast():
    data = b'"user","item"\n"1","2"\n\n"3","a,b"\r\n5,""'
    dialect, index = delimited.Dialect(",", True), {"user": 0, "item": 1}
    assert delimited._read_fast(data, dialect, 2, index) is None  # only because of its empty id
    columns = delimited._read_fast(data[:-4], dialect, 2, index)
    assert {key: column.to_pylist() for key, column in columns.items()} == {"user": ["1", "3"], "item": ["2", "a,b"]}


@pytest.mark.parametrize(
    "data, plain",
    [
        (b'"a",b\n1,"2,3"\n', True),
        (b'1,""', True),
        (b'1,"2', False),
        (b'1,"2\n3",4\n', False),  # pyarrow may cut its blocks at this line end
        (b'1,"2\r3",4\n', False),
        (b'1,x"2"\n', False),
        (b'1,"2"x\n', False),
        (b'1,"2""3"\n', False),
        (b'1,"2\n3,4"\n', False),
    ],
)
def test_plainly_quoted(data, plain):
    assert delimited._plainly_quoted(data, ",") is plain


@pytest.mark.parametrize("header", ["user,item\n", "user,item,time\n"])
def test_a_header_in_the_middle_of_the_data(tmp_path, header):
    line = "1,2" + ",7" * (header.count(",") - 1) + "\n"
    (tmp_path / "cat.csv").write_text(header + line + header + line.replace("2", "3"))
    with pytest.raises(UserError, match=r"cat\.csv, line 3: a header in the middle of the data: 'user,item"):
        run(tmp_path, tmp_path / "cat.csv")
    dataset = run(tmp_path, tmp_path / "cat.csv", on_bad_line="skip")
    assert raw_pairs(dataset) == [(1, 2), (1, 3)] and dataset.manifest.bad_lines == 1


def test_part_files_of_which_one_has_a_header(tmp_path):
    (tmp_path / "part-0").write_text("1,2\n1,3\n")
    (tmp_path / "part-1").write_text("user,item\n2,3\n")
    with pytest.raises(UserError, match=r"part-1, line 1: a header in the middle"):
        run(tmp_path, f"{tmp_path}/part-*")


def test_numbers_as_names_are_no_header(tmp_path):
    (tmp_path / "a.csv").write_text("1,2\n1,3\n1,2\n")
    assert raw_pairs(run(tmp_path, tmp_path / "a.csv", user_column="1", item_column="2")) == [(1, 2), (1, 3)]


def test_a_blank_between_separator_and_quote(tmp_path):
    (tmp_path / "a.csv").write_text('"user", "item"\n"a", "green, tea"\n"b", "rum"\n')
    assert raw_pairs(run(tmp_path, tmp_path / "a.csv", buckets=1)) == [("a", "green, tea"), ("b", "rum")]


@pytest.mark.parametrize("kind", [pa.decimal128(10, 0), pa.decimal128(12, 2), pa.string_view(), pa.float16()])
def test_parquet_types_of_ids(tmp_path, kind):
    ids = pa.array(np.array([1, 2, 2], np.float16)) if kind == pa.float16() else pa.array([1, 2, 2], pa.int32())
    ids = ids.cast(pa.string()).cast(kind) if kind == pa.string_view() else ids.cast(kind)
    pq.write_table(pa.table({"user": ids, "item": [5, 6, 7]}), tmp_path / "a.parquet")
    assert sorted(raw_pairs(run(tmp_path, tmp_path / "a.parquet"))) == [(1, 5), (2, 6), (2, 7)]


@pytest.mark.parametrize("kind, limit", [(pa.float64(), 2**53), (pa.float32(), 2**24)])
def test_floats_that_may_have_merged_ids_are_refused(tmp_path, kind, limit):
    pq.write_table(pa.table({"user": pa.array([1, limit], kind), "item": [5, 6]}), tmp_path / "good.parquet")
    assert sorted(raw_pairs(run(tmp_path, tmp_path / "good.parquet"))) == [(1, 5), (limit, 6)]
    pq.write_table(pa.table({"user": pa.array([1, 2.0 * limit], kind), "item": [5, 6]}), tmp_path / "bad.parquet")
    with pytest.raises(UserError, match=r"column 'user' holds (double|float) numbers beyond"):
        run(tmp_path, tmp_path / "bad.parquet")


def test_parquet_texts_of_ratings_and_times_are_checked_by_row(tmp_path):
    columns = {"user": [1, 1, 2], "item": [5, 6, 7], "rating": ["4", "x", "True"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    rule = {"rating_column": "rating", "min_rating": 1}
    with pytest.raises(UserError, match=r"a\.parquet, row 2: the rating is missing or invalid: '1, 6, x'"):
        run(tmp_path, tmp_path / "a.parquet", **rule)
    assert run(tmp_path, tmp_path / "a.parquet", on_bad_line="skip", **rule).manifest.train == 2
    (tmp_path / "a.csv").write_text("user,item,rating\n1,5,TRUE\n1,6,false\n2,7,True\n")
    assert sorted(raw_pairs(run(tmp_path, tmp_path / "a.csv", **rule))) == [(1, 5), (2, 7)]


def test_times_with_nanoseconds(tmp_path):
    times = [f"2024-05-01T00:00:0{second}.123456789Z" for second in (3, 1, 2)]
    (tmp_path / "a.csv").write_text("user,item,time\n" + "".join(f"1,{n},{time}\n" for n, time in enumerate(times)))
    dataset = run(tmp_path, tmp_path / "a.csv", split="leave_last", time_column="time")
    assert raw_pairs(dataset, Part.TEST) == [(1, 0)]


def test_a_name_that_is_not_utf8(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "train.csv").write_text("user,item\n1,2\n")
    (folder / "b\udce9.test.csv").write_text("user,item\n1,3\n")
    assert run(tmp_path, folder).manifest.test == 1


def test_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text('{"user": 1, "item": 2}\n')
    with pytest.raises(UserError, match=r"a\.json is JSON: convert it to CSV or Parquet"):
        run(tmp_path, tmp_path / "a.json")
