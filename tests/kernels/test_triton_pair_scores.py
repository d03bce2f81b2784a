"""Scores of pairs on GPUs: in the interpreter, as machine code for a GPU that is not there, and on one where there is.

What they have in common with those on the CPU is tested in test_kernels.py."""

import sys
from types import SimpleNamespace

import pytest
import torch

from distrec.kernels.dispatch import has_gpu_kernel
from distrec.models.scoring import pair_scores, pair_scores_reference
from tests.kernels.gpu import compiling, installed, on_gpu, python, running, to_interpret
from tests.kernels.implementations import by_triton
from tests.kernels.test_pair_scores import case, scored


@to_interpret
def test_a_part_of_the_shared_tests_in_the_interpreter():
    """All of them: make test-triton. A process of its own, as Triton looks at the variable when it is imported."""
    chosen = "triton and (usual or nothing or less or several or one_order or layout or outside)"
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, "tests/kernels", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout


@compiling
def test_every_program_compiles_for_a_gpu(tmp_path):
    done = python("-m", "tests.kernels.compile_pair_scores", "90", TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stdout


@running
@pytest.mark.parametrize("shape", [(9, 5, 5, 3, 4), (14, 3, 3, 20, 30), (4, 8, 6, 1, 1), (8, 1, 130, 1, 2)])
@pytest.mark.parametrize("chunk", [1, 4])
def test_a_row_with_several_chunks(shape, chunk, monkeypatch):
    """Rows that end with a chunk, or one place before or after it; slots that nobody needs."""
    monkeypatch.setattr("distrec.kernels.triton.pair_scores.CHUNK", chunk)
    users, items, user_index, item_index = case(shape)
    grad = torch.randn(item_index.shape, dtype=torch.float64)
    expected = scored(pair_scores_reference, users, items, user_index, item_index, grad)
    for found, wanted in zip(scored(by_triton, users, items, user_index, item_index, grad), expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)


@running
def test_digits_of_a_row_are_those_of_the_cpu_whatever_else_is_in_the_batch(monkeypatch):
    monkeypatch.setattr("distrec.kernels.triton.pair_scores.CHUNK", 16)
    users, items, user_index, item_index = case((20, 6, 8, 4, 30), torch.float32)
    item_index[:, ::2] = 0  # a row with four chunks, beside rows with no more than one
    grad = torch.randn(item_index.shape)
    _, _, expected = scored(pair_scores, users, items, user_index, item_index, grad)
    _, _, found = scored(by_triton, users, items, user_index, item_index, grad)
    assert torch.equal(found[1:], expected[1:])
    assert torch.allclose(found[0], expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("triton", [None, "3.5.1", "3.6.0"])
def test_gpus_get_programs_where_a_fitting_triton_is(triton, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", triton and SimpleNamespace(__version__=triton))
    rows = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    assert has_gpu_kernel(rows) == (triton == "3.6.0")
    rows.dtype = torch.bfloat16
    assert not has_gpu_kernel(rows)
    assert not has_gpu_kernel(torch.ones(2, 3))


@on_gpu
def test_on_a_gpu_nothing_of_the_size_of_all_items_is_built_and_nothing_waits():
    tensors = [tensor.cuda() for tensor in case((256, 400, 64, 200, 5000), torch.float32)]
    grad = torch.ones(256, 400, device="cuda")
    scored(pair_scores, *tensors, grad)  # compiles, which may wait
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        scored(pair_scores, *tensors, grad)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() - before < 256 * 400 * 64 * 4 / 2


@on_gpu
@pytest.mark.parametrize(("where", "wrong"), [("user_at", -1), ("item_at", 5)])
def test_a_place_outside_the_rows_stops_the_gpu(where, wrong):
    """As an index error of torch does, and like it in a process of its own: none of the GPU is left to the others."""
    script = f"""
import torch
from distrec.models.scoring import pair_scores
rows, user_at, item_at = torch.ones(5, 8).cuda(), torch.zeros(4).int().cuda(), torch.zeros(4, 3).int().cuda()
{where}.view(-1)[2] = {wrong}
pair_scores(rows, rows, user_at, item_at)
torch.cuda.synchronize()
"""
    done = python("-c", script)
    assert done.returncode != 0
    assert "a place outside the rows of the batch" in done.stdout


@installed
def test_widths_are_powers_of_2():
    from distrec.kernels.triton.pair_scores import _width

    assert [_width(dim) for dim in (0, 1, 3, 64, 65, 1000)] == [1, 1, 4, 64, 128, 128]


def test_scores_load_no_compiler_before_they_are_asked_for():
    done = python("-c", "import sys, distrec.models.scoring; sys.exit(str({'numba', 'triton'} & sys.modules.keys()))")
    assert done.stdout.strip() == "set()", done.stdout
