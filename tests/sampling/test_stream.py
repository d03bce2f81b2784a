"""Streamed batches equal those computed in this process, bit for bit and in order, for 1, 2 and 4 workers."""

import contextlib
import itertools
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from distrec.sampling import stream as stream_package
from distrec.sampling.arrow import from_table, to_table
from distrec.sampling.batch import Batch, BatchNeeds
from distrec.sampling.source import BatchSource
from distrec.sampling.stream import stream
from distrec.sampling.stream.blocks import EpochBlocks
from distrec.sampling.stream.thread import THREAD_NAME
from distrec.sharding.device_copy import to_device
from tests.conftest import changed


def source(config, dataset, worker, workers, log_q=True):
    return BatchSource(
        dataset, config.sampling, config.run.seed, config.train.batch_size, worker, workers, BatchNeeds(log_q)
    )


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


# Starting a stream of Ray Data takes seconds, so it runs a sample of what a thread runs. One more is below.
STREAMED = [("ray", 2, True, [1])]
STREAMED += [("thread", w, shared, {0, w - 1}) for w, shared in [(1, False), (2, True), (2, False), (4, False)]]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("backend", "workers", "shared", "chosen"), STREAMED)
def test_streamed_batches_equal_the_source(ray_cluster, small, dataset, monkeypatch, backend, workers, shared, chosen):
    monkeypatch.setitem(stream_package._BLOCK_BYTES, backend, 60_000)  # several blocks an epoch
    config = changed(small, sampling={"shared": shared})
    for worker in chosen:
        src = source(config, dataset, worker, workers)
        streamed = list(stream(src, 1, 3, src.bytes_per_step, 64, backend))
        expected = [src.batch(epoch, step) for epoch in (1, 2) for step in range(src.steps)]
        assert len(streamed) == len(expected)
        assert all(same(a, b) for a, b in zip(streamed, expected, strict=True))


@pytest.mark.long
def test_several_actors_keep_the_order(ray_cluster, small, dataset, monkeypatch):
    monkeypatch.setitem(stream_package._BLOCK_BYTES, "ray", 20_000)  # several blocks for each actor
    src = source(changed(small, sampling={"shared": False}), dataset, 0, 1)
    streamed = list(stream(src, 0, 2, src.bytes_per_step, 64, "ray", actors=3))
    expected = [src.batch(epoch, step) for epoch in (0, 1) for step in range(src.steps)]
    assert all(same(a, b) for a, b in zip(streamed, expected, strict=True))


class Broken:
    steps = 3

    def batches(self, epoch, first, last):
        raise ValueError("broken source")


def test_an_error_in_the_thread_is_raised_by_the_stream():
    with pytest.raises(ValueError, match="broken source"):
        list(stream(Broken(), 0, 1, 100, 64, "thread"))


def test_blocks_cover_each_epoch_without_crossing_it():
    for steps, size in itertools.product((1, 5, 12), (1, 4, 12)):
        blocks = EpochBlocks(steps, size)
        found = [blocks.steps_of(k) for k in range(3 * blocks.per_epoch)]
        covered = [(epoch, step) for epoch, first, last in found for step in range(first, last)]
        assert covered == [(epoch, step) for epoch in range(3) for step in range(steps)]


def test_round_trip_through_an_arrow_table(small, dataset):
    batches = source(small, dataset, 0, 2).batches(0, 0, 5)
    table = to_table(batches)
    assert all(same(a, b) for a, b in zip(from_table(table), batches, strict=True))
    assert [b.step for b in from_table(table.slice(2, 2))] == [2, 3]
    assert all(same(a, b) for a, b in zip(from_table(table.slice(2, 2)), batches[2:4], strict=True))


def test_a_table_carries_what_its_steps_need(small, dataset):
    """The columns of needed arrays, at about the size estimated; the others are empty after the round trip."""
    bare = source(changed(small, sampling={"shared": False}), dataset, 0, 2)
    for needs, names in [
        (BatchNeeds(), set()),
        (BatchNeeds(log_q=True), {"log_q"}),
        (BatchNeeds(extra_positives=3), {"extra_index"}),
        (BatchNeeds(log_q=True, extra_positives=5, history=30), {"log_q", "extra_index", "history_index"}),
    ]:
        src = replace(bare, needs=needs)
        batches = src.batches(0, 0, src.steps)
        table = to_table(batches)
        assert set(table.column_names) & {"log_q", "extra_index", "history_index"} == names
        found = list(from_table(table))
        assert all(same(a, b) for a, b in zip(found, batches, strict=True))
        assert found[0].extra_index.dtype == (np.uint16 if needs.extra_positives else np.int32)
        assert found[0].history_index.dtype == np.int32 and found[0].log_q.dtype == np.float32
        assert needs.history == 0 or (found[0].history_index == -1).any()
        sent = sum(a.nbytes for batch in found for a in vars(batch).values() if isinstance(a, np.ndarray))
        assert 0.7 < sent / (src.steps * src.bytes_per_step) < 1.1


@pytest.mark.parametrize("rows", [1, 2**16, 2**16 + 1])
def test_indices_are_sent_in_the_smallest_dtype(rows):
    """Two steps, the second with `rows` items and an index to the last; on the device an index has 32 bits again."""
    index = np.array([0, rows - 1], np.int32)
    one, none = index[:1], index[:0]
    few, many = (
        Batch(0, k, 2, one, one, np.arange(size, dtype=np.int32), one, index % size, index % size, none, none)
        for k, size in enumerate((1, rows))
    )
    found = list(from_table(to_table([few, many])))
    assert all(same(a, b) for a, b in zip(found, [few, many], strict=True))
    assert found[1].negative_index.dtype == found[0].negative_index.dtype == (np.uint16 if rows <= 2**16 else np.int32)
    (sent,) = to_device([found[1].negative_index], torch.device("cpu"))
    assert sent.dtype == torch.int32 and sent.tolist() == index.tolist()


class Counting:
    """A source of batches of 4 MiB that logs each step it computes to a file."""

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
@pytest.mark.parametrize("backend", ["ray", "thread"])
@pytest.mark.long
def test_the_look_ahead_is_bounded_and_an_early_stop_ends_the_stream(ray_cluster, tmp_path, monkeypatch, backend):
    """Two streams, because the first execution of a process ends too early to show a thread that is left."""
    monkeypatch.setitem(stream_package._BLOCK_BYTES, "ray", 8 * 2**20)
    for name, steps in (("first", 60), ("second", 3)):
        source, running = Counting(tmp_path / name), set(threading.enumerate())
        batches = stream(source, 0, 1, 4 * 2**20, look_ahead_mib=64, backend=backend)
        # Closed even if the test fails: an execution that outlives `ray.shutdown` ends the process.
        with contextlib.closing(batches):
            first = next(batches)
            if name == "first":
                check_the_look_ahead(source)
            assert [first.step, *(b.step for b in itertools.islice(batches, steps - 1))] == list(range(steps))
        deadline = time.monotonic() + 10
        while backend == "thread" and any(thread.name.startswith(THREAD_NAME) for thread in threading.enumerate()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # Ray Data leaves one idle thread, which never ends. No thread that calls Ray may be left.
        assert {thread.name for thread in set(threading.enumerate()) - running} <= {"Prefetcher"}


def check_the_look_ahead(source):
    """Check that a stream without a consumer stops at its bound: 16 steps of 4 MiB, and blocks in transit.

    It is then idle: Ray Data's scheduler runs in this process and would otherwise use 0.9 of a core.
    """
    computed, since = 0, time.monotonic()
    while computed < 4 or time.monotonic() - since < 1:  # until no step was added for a second
        if (now := len(source.file.read_text().splitlines())) > computed:
            computed, since = now, time.monotonic()
        time.sleep(0.05)
    assert 4 <= computed <= 32
    cpu_s, since = time.process_time(), time.monotonic()
    time.sleep(1)
    assert time.process_time() - cpu_s < 0.4 * (time.monotonic() - since)
