"""Batches through Ray Data equal the batches computed here, bit for bit and in order, for 1, 2 and 4 workers."""

import contextlib
import itertools
import threading
import time

import numpy as np
import pytest
import torch

from distrec.data import stream as stream_module
from distrec.sampling.batch import Batch, from_table, to_table
from distrec.sampling.source import BatchSource
from distrec.sampling.stream.ray import Chunks, stream
from distrec.sharding.transfer import place
from distrec.training.driver import ray_running
from tests.conftest import changed


def source(config, dataset, worker, workers, log_q=True):
    return BatchSource(dataset, config.sampling, config.run.seed, config.train.batch_size, worker, workers, log_q)


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


@pytest.fixture(scope="module")
def ray():
    with ray_running(workers=2):
        yield


@pytest.mark.timeout(120)
@pytest.mark.parametrize("by", ["ray", "thread"])
@pytest.mark.parametrize(("workers", "shared"), [(1, False), (2, True), (2, False), (4, False)])
def test_the_stream_is_the_function(ray, small, dataset, monkeypatch, workers, shared, by):
    monkeypatch.setitem(stream_module._BLOCK_BYTES, by, 60_000)  # several blocks an epoch
    config = changed(small, sampling={"shared": shared})
    for worker in {0, workers - 1}:
        src = source(config, dataset, worker, workers)
        streamed = list(stream(src, 1, 3, src.bytes_per_step, 64, by))
        wanted = [src.batch(epoch, step) for epoch in (1, 2) for step in range(src.steps)]
        assert len(streamed) == len(wanted)
        assert all(same(a, b) for a, b in zip(streamed, wanted, strict=True))


def test_several_actors_keep_the_order(ray, small, dataset, monkeypatch):
    monkeypatch.setitem(stream_module._BLOCK_BYTES, "ray", 20_000)  # many blocks for each
    src = source(changed(small, sampling={"shared": False}), dataset, 0, 1)
    streamed = list(stream(src, 0, 2, src.bytes_per_step, 64, "ray", actors=3))
    wanted = [src.batch(epoch, step) for epoch in (0, 1) for step in range(src.steps)]
    assert all(same(a, b) for a, b in zip(streamed, wanted, strict=True))


class Broken:
    steps = 3

    def batches(self, epoch, first, last):
        raise ValueError("these batches cannot be made")


def test_what_goes_wrong_in_the_thread_is_raised_here():
    with pytest.raises(ValueError, match="cannot be made"):
        list(stream(Broken(), 0, 1, 100, 64, "thread"))


def test_chunks_cover_each_epoch_without_crossing_it():
    for steps, size in itertools.product((1, 5, 12), (1, 4, 12)):
        chunks = Chunks(steps, size)
        found = [chunks.steps_of(k) for k in range(3 * chunks.per_epoch)]
        covered = [(epoch, step) for epoch, first, last in found for step in range(first, last)]
        assert covered == [(epoch, step) for epoch in range(3) for step in range(steps)]


def test_a_table_gives_its_batches_back(small, dataset):
    batches = source(small, dataset, 0, 2).batches(0, 0, 5)
    table = to_table(batches)
    assert all(same(a, b) for a, b in zip(from_table(table), batches, strict=True))
    assert [b.step for b in from_table(table.slice(2, 2))] == [2, 3]
    assert all(same(a, b) for a, b in zip(from_table(table.slice(2, 2)), batches[2:4], strict=True))


@pytest.mark.parametrize("rows", [1, 2**16, 2**16 + 1])
def test_places_travel_in_as_few_bits_as_hold_them(rows):
    """Two steps, the second of so many items: its last row is named; the trainer gets 32 bits back."""
    at = np.array([0, rows - 1], np.int32)
    few, many = (
        Batch(0, k, 2, at[:1], at[:1], np.arange(size, dtype=np.int32), at[:1], at % size, at % size, at[:0], at[:0])
        for k, size in enumerate((1, rows))
    )
    found = list(from_table(to_table([few, many])))
    assert all(same(a, b) for a, b in zip(found, [few, many], strict=True))
    assert found[1].negative_index.dtype == found[0].negative_index.dtype == (np.uint16 if rows <= 2**16 else np.int32)
    (placed,) = place([found[1].negative_index], torch.device("cpu"))
    assert placed.dtype == torch.int32 and placed.tolist() == at.tolist()


class Counting:
    """A source of large batches that writes down which were asked for."""

    steps = 200

    def __init__(self, file):
        self.file = file

    def batches(self, epoch, first, last):
        with self.file.open("a") as log:
            log.write("step\n" * (last - first))
        none = np.zeros(0, np.int64)
        large = np.zeros(2**20, np.int32)
        return [Batch(epoch, k, 1, none, none, none, none, none, large, none, none) for k in range(first, last)]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("by", ["ray", "thread"])
def test_an_early_stop_ends_the_stream(ray, tmp_path, by):
    """More than once: the first execution of a process happens to end before it is looked at."""
    for _ in range(3):
        running = set(threading.enumerate())
        batches = stream(Counting(tmp_path / "asked"), 0, 1, 4 * 2**20, 64, by)
        assert [b.step for b in itertools.islice(batches, 3)] == [0, 1, 2]
        batches.close()
        deadline = time.monotonic() + 10
        while by == "thread" and any(thread.name == "batches" for thread in threading.enumerate()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # Ray Data leaves one thread that waits for ever, and does nothing. None may go on that talks to Ray.
        assert {thread.name for thread in set(threading.enumerate()) - running} <= {"Prefetcher"}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("by", ["ray", "thread"])
def test_the_look_ahead_is_bounded(ray, tmp_path, monkeypatch, by):
    """Nobody takes batches: the stream stops at its bound (16 steps of 4 MiB, and blocks under way), not at the
    end (200 steps). Then it rests: Ray Data's scheduler shares this process with the trainer, and would take nine
    tenths of a core."""
    monkeypatch.setitem(stream_module._BLOCK_BYTES, "ray", 8 * 2**20)
    source = Counting(tmp_path / "asked")
    batches = stream(source, 0, 1, 4 * 2**20, look_ahead_mib=64, by=by)
    # Closed even if the test fails: an execution that outlives its Ray ends the process.
    with contextlib.closing(batches):
        next(batches)
        time.sleep(4)
        assert 4 <= len(source.file.read_text().splitlines()) <= 32
        taken = time.process_time()
        time.sleep(2)
        assert time.process_time() - taken < 0.8
        assert [b.step for b in batches] == list(range(1, 200))
