"""Published data sets in the folder DISTREC_DATA: counts, and a preparation time that allows an interactive start."""

import os
import time
from pathlib import Path

import pytest

from distrec.data.dataset import Part
from tests.data.files import run

pytestmark = pytest.mark.skipif(
    not os.environ.get("DISTREC_DATA"), reason="needs the public data sets: set DISTREC_DATA to their folder"
)


def folder(name: str) -> Path:
    """Return the folder of a data set; skip the test if it is missing."""
    found = Path(os.environ["DISTREC_DATA"]) / name
    if not found.is_dir():
        pytest.skip(f"DISTREC_DATA={found.parent} has no folder {name}")
    return found


def test_gowalla(tmp_path):
    source = folder("gowalla")
    started = time.monotonic()
    m = run(tmp_path, source, valid_fraction=0.1, buckets=64).manifest
    assert time.monotonic() - started < 20  # 1.5 s on two quiet cores
    assert (m.users, m.items, m.train + m.valid, m.test) == (29_858, 40_981, 810_128, 217_242)
    assert (m.duplicates, m.overlap, m.bad_lines) == (0, 0, 0)
    assert abs(m.valid - 81_013) < 4 * (29_858 / 4) ** 0.5


def test_ml_100k(tmp_path):
    dataset = run(tmp_path, folder("ml-100k"), test_fraction=0.2, valid_fraction=0)
    m = dataset.manifest
    assert (m.users, m.items, m.train + m.test, m.duplicates) == (943, 1682, 100_000, 0)
    assert dataset.user_ids().to_pylist() == list(range(1, 944))
    assert len(dataset.interactions(Part.TEST, range(3))[0]) == m.test
