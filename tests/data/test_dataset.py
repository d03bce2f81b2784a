"""A prepared folder: reading, pickling, summary, fingerprint, and the errors for damaged files."""

import pickle

import pytest

from distrec.core.errors import UserError
from distrec.data.dataset import Dataset, Part
from tests.data.files import SMALL, raw_pairs, run, write


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    pairs = [(user, item) for user in range(5) for item in range(user + 1)]
    return run(tmp_path, write(tmp_path / "steps.csv", pairs), buckets=2)


def test_buckets_keep_the_order_given(dataset):
    assert dataset.interactions(Part.TRAIN, [1])[0].tolist() == [1, 1, 3, 3, 3, 3]
    assert dataset.interactions(Part.TRAIN, [1, 0])[0].tolist() == [1, 1, 3, 3, 3, 3, 0, 2, 2, 2, 4, 4, 4, 4, 4]
    assert dataset.interactions(Part.TRAIN, iter([0]))[1].tolist() == [0, 0, 1, 2, 0, 1, 2, 3, 4]
    for empty in (dataset.interactions(Part.TRAIN, []), dataset.interactions(Part.TEST, [0, 1])):
        assert [column.dtype.name for column in empty] == ["int32", "int32"]
        assert [len(column) for column in empty] == [0, 0]
    with pytest.raises(AssertionError):
        dataset.interactions(Part.TRAIN, [2])


def test_pickle_is_small(dataset):
    sent = pickle.dumps(dataset)
    assert len(sent) < 2000
    assert raw_pairs(pickle.loads(sent)) == raw_pairs(dataset)


def test_summary(dataset):
    rows = dict(dataset.summary())
    assert rows["name"] == "steps"
    assert rows["users"] == "5 (0 without training interactions)"
    assert rows["interactions"] == "15: 15 train, 0 valid, 0 test"
    assert rows["density"] == "60 %"
    assert rows["training interactions of a user"] == "min 1, 25 % 2, median 3, 75 % 4, 90 % 5, 99 % 5, max 5"
    assert rows["training interactions of an item"] == "min 1, 25 % 2, median 3, 75 % 4, 90 % 5, 99 % 5, max 5"
    assert rows["fingerprint"] == dataset.manifest.fingerprint
    assert (rows["bad lines left out"], rows["duplicates merged"]) == ("0", "0: 0 train, 0 valid, 0 test")


def test_missing_and_damaged_files(dataset):
    (dataset.path / "buckets/00001.parquet").unlink()
    assert len(dataset.interactions(Part.TRAIN, [0])[0]) == 9
    with pytest.raises(UserError, match=r"buckets/00001\.parquet is missing; delete the data set's folder"):
        dataset.interactions(Part.TRAIN, [0, 1])
    (dataset.path / "users.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"users\.parquet is damaged \("):
        dataset.user_degrees()


def test_fingerprint_depends_on_the_content_alone(tmp_path):
    fingerprints = {
        "base": run(tmp_path, write(tmp_path / "a.csv", SMALL)),
        "buckets": run(tmp_path, write(tmp_path / "a.csv", SMALL), buckets=5),
        "pair": run(tmp_path, write(tmp_path / "b.csv", [*SMALL[:-1], (2, 7)])),
        "raw id": run(tmp_path, write(tmp_path / "c.csv", [(user + 1, item) for user, item in SMALL])),
        "type of id": run(tmp_path, write(tmp_path / "d.csv", [(f"u{user}", item) for user, item in SMALL])),
        "part": run(tmp_path, write(tmp_path / "e.csv", SMALL[:-1]), test=write(tmp_path / "f.csv", SMALL[-1:])),
    }
    assert len({dataset.manifest.fingerprint for dataset in fingerprints.values()}) == len(fingerprints)
    other_name = run(tmp_path, write(tmp_path / "copy/z.parquet", [*SMALL, SMALL[0]]))
    assert other_name.manifest.fingerprint == fingerprints["base"].manifest.fingerprint
