"""Pair scores in Triton: in the interpreter, compiled for an absent GPU, and run on a GPU if there is one.

Tests shared with the CPU implementation are in test_pair_scores.py."""

import sys
from types import SimpleNamespace

import pytest
import torch

from distrec.kernels.dispatch import has_gpu_kernel
from distrec.models.scoring import pair_scores, pair_scores_reference
from tests.kernels.gpu import compiling, installed, on_gpu, python, running
from tests.kernels.implementations import triton_in_order
from tests.kernels.test_pair_scores import case, scored


@compiling
@pytest.mark.long
def test_every_program_compiles_for_a_gpu(tmp_path):
    done = python("-m", "tests.kernels.compile_pair_scores", "90", TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stdout


@running
@pytest.mark.parametrize("shape", [(9, 5, 5, 3, 4), (14, 3, 3, 20, 30), (4, 8, 6, 1, 1), (8, 1, 130, 1, 2)])
@pytest.mark.parametrize("chunk", [1, 4])
def test_rows_with_several_chunks(shape, chunk, monkeypatch):
    """Rows that end at the end of a chunk, or one summand before or after it; surplus programs."""
    monkeypatch.setattr("distrec.kernels.triton.pair_scores.CHUNK", chunk)
    users, items, user_index, item_index = case(shape)
    grad = torch.randn(item_index.shape, dtype=torch.float64)
    expected = scored(pair_scores_reference, users, items, user_index, item_index, grad)
    for found, wanted in zip(
        scored(triton_in_order, users, items, user_index, item_index, grad), expected, strict=True
    ):
        assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)


@running
def test_rows_of_one_chunk_are_bit_equal_to_the_cpu(monkeypatch):
    monkeypatch.setattr("distrec.kernels.triton.pair_scores.CHUNK", 16)
    users, items, user_index, item_index = case((20, 6, 8, 4, 30), torch.float32)
    item_index[:, ::2] = 0  # a row with four chunks beside rows with at most one
    grad = torch.randn(item_index.shape)
    _, _, expected = scored(pair_scores, users, items, user_index, item_index, grad)
    _, _, found = scored(triton_in_order, users, items, user_index, item_index, grad)
    assert torch.equal(found[1:], expected[1:])
    assert torch.allclose(found[0], expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("triton", [None, "3.5.1", "3.6.0"])
def test_programs_need_a_supported_triton_and_dtype(triton, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", triton and SimpleNamespace(__version__=triton))
    rows = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    assert has_gpu_kernel(rows) == (triton == "3.6.0")
    rows.dtype = torch.bfloat16
    assert not has_gpu_kernel(rows)
    assert not has_gpu_kernel(torch.ones(2, 3))


@on_gpu
def test_neither_materialises_item_rows_nor_synchronises():
    tensors = [tensor.cuda() for tensor in case((256, 400, 64, 200, 5000), torch.float32)]
    grad = torch.ones(256, 400, device="cuda")
    scored(pair_scores, *tensors, grad)  # compiles, which may synchronise
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
@pytest.mark.parametrize(("where", "wrong"), [("user_index", -1), ("item_index", 5)])
def test_index_outside_the_rows_is_a_device_assertion(where, wrong):
    """Like an index error of torch. In a separate process, as the process cannot use the GPU afterwards."""
    script = f"""
import torch
from distrec.models.scoring import pair_scores
rows = torch.ones(5, 8).cuda()
user_index, item_index = torch.zeros(4).int().cuda(), torch.zeros(4, 3).int().cuda()
{where}.view(-1)[2] = {wrong}
pair_scores(rows, rows, user_index, item_index)
torch.cuda.synchronize()
"""
    done = python("-c", script)
    assert done.returncode != 0
    assert "an index outside the rows of the batch" in done.stdout


@installed
def test_widths_are_powers_of_2():
    from distrec.kernels.triton.pair_scores import _width

    assert [_width(dim) for dim in (0, 1, 3, 64, 65, 1000)] == [1, 1, 4, 64, 128, 128]
