"""The data of a refit: equal to those of a source that never had a validation part."""

import numpy as np

from distrec.core.file_lock import FileLock
from distrec.data.config import DataConfig
from distrec.data.dataset import Part
from distrec.data.merge import merge_validation, refit_data
from distrec.data.prepare import prepare
from tests.conftest import changed


def test_a_merged_data_set_is_that_without_a_validation_part(small, dataset, tmp_path):
    whole = prepare(small.data.model_copy(update={"valid_fraction": 0.0}))
    merged = merge_validation(dataset, tmp_path)
    differing = {"valid_fraction"}
    assert merged.manifest.model_dump(exclude=differing) == whole.manifest.model_dump(exclude=differing)
    assert merged.manifest.train == dataset.manifest.train + dataset.manifest.valid and not merged.manifest.valid
    for part in Part:
        buckets = range(dataset.manifest.buckets)
        found, expected = merged.interactions(part, buckets), whole.interactions(part, buckets)
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_refits_of_each_kind_of_source(small, dataset, tmp_path):
    held_out = refit_data(small.data, dataset)
    assert held_out.valid_fraction == 0 and held_out.source == "planted"
    prepared = changed(small, data={"cache": str(tmp_path)}).data
    again = DataConfig(source=str(dataset.path), cache=prepared.cache)
    found = prepare(refit_data(again, prepare(again)))
    assert found.manifest.fingerprint == prepare(held_out).manifest.fingerprint
    for name, text in {"train": "a,x\na,y\nb,x\nb,z\n", "valid": "a,z\n", "test": "b,y\n"}.items():
        (tmp_path / f"{name}.csv").write_text(f"user,item\n{text}")
    files = DataConfig(source=str(tmp_path), cache=prepared.cache)
    found = prepare(refit_data(files, prepare(files))).manifest
    assert (found.train, found.valid, found.test) == (5, 0, 1)


def test_a_refit_that_waits_for_another_process_says_so(dataset, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(FileLock, "acquire_waiting", lambda lock, on_wait: on_wait("process 7") or lock.acquire())
    refit_data(DataConfig(source=str(dataset.path), cache=tmp_path), dataset, lines.append)
    assert lines == ["data: waiting for process 7, which prepares the same data"]
