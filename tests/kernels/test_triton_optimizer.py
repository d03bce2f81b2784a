"""Triton kernels of the optimizer: in the interpreter, as machine code for an absent GPU, and on a GPU."""

import sys
from types import SimpleNamespace

import pytest
import torch

from distrec.core.errors import UserError
from distrec.kernels.dispatch import kernels_for
from distrec.kernels.optimizer import Decay, ReferenceKernels, padded
from distrec.optim.config import OptimConfig
from distrec.optim.rules import RULES
from distrec.sharding.partition import Partition
from tests.kernels.gpu import INTERPRETING, compiling, installed, interpreted, on_gpu, python, running
from tests.optim.cases import DTYPES, batches, config, each_mode, start


@compiling
@pytest.mark.long
def test_every_program_compiles_for_a_gpu(tmp_path):
    done = python("-m", "tests.kernels.compile_optimizer", "90", TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stdout


@installed
def test_every_rule_has_its_program():
    from distrec.kernels.triton.optimizer import UPDATES

    assert set(UPDATES) == set(RULES)


def chosen(name: str, device: str) -> ReferenceKernels:
    return kernels_for(name, torch.device(device), torch.float32, lambda local: local)


def rows_and_slots(rule, scope, coupling, dtype, kernels, device) -> list[torch.Tensor]:
    """Return rows and slots after a run with gaps, a flush in between, and rows that are touched late or never."""
    rows_VD = torch.linspace(-1, 1, 35, dtype=dtype).view(7, 5).to(device)
    table, optimizer = start(config(rule, scope, coupling, kernels=kernels), rows_VD)
    for step, (rows_U, grad_UD) in enumerate(batches(3, 40, 6, dtype)):
        if 10 < step < 30:
            rows_U, grad_UD = rows_U[:1], grad_UD[:1]
        optimizer.step(rows_U.to(device), grad_UD.to(device))
        if step == 20:
            table.flush()
    return [tensor.cpu() for tensor in (table.flush(), *optimizer._rule.slots.values())]


@running
@each_mode(dtype=DTYPES)
def test_bits_equal_those_of_the_compiled_loops(rule, scope, coupling, dtype):
    expected = rows_and_slots(rule, scope, coupling, dtype, "numba", "cpu")
    found = rows_and_slots(rule, scope, coupling, dtype, "triton", "cpu" if INTERPRETING else "cuda")
    # A sum over a row has another order here, so its last bits may differ.
    tolerance = 40 * torch.finfo(dtype).eps if rule == "rowwise_adagrad" else 0
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@running
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("all_rows", [False, True])
def test_bits_of_rounded_rows_equal_those_of_the_host(rule, all_rows):
    """By the rows of worker 1 of 3, with rows that are not in the batch and entries that are none."""
    device, partition = torch.device("cpu" if INTERPRETING else "cuda"), Partition(23, 7, 3)
    rows_VD = torch.linspace(-1, 1, 6 * partition.size(1)).view(-1, 6).bfloat16()
    hyperparameters = {name: getattr(OptimConfig(), name) for name in RULES[rule].hyperparameters}
    shards = [rows_VD.clone(), rows_VD.clone().to(device)]
    rules = [RULES[rule](shard_VD, **hyperparameters) for shard_VD in shards]
    host, device_kernels = (
        kernels_for(name, shard_VD.device, torch.bfloat16, lambda local_U: partition.row(local_U, 1))
        for name, shard_VD in zip(("numba", "triton"), shards, strict=True)
    )
    for t in range(1, 12):
        mask_V = (torch.arange(len(rows_VD)) * t) % 3 == 0
        used_U, every_V = mask_V.nonzero()[:, 0], torch.arange(len(rows_VD))
        grad_VD = torch.sin(torch.arange(rows_VD.numel()) * t).view(rows_VD.shape) * mask_V[:, None]
        coefficients, host.step = rules[0].coefficients(0.1, t), t
        for local_U, decay in ((used_U, Decay(0.01, 0.02)), (every_V[~mask_V], Decay())):
            if len(local_U) and (all_rows or decay.l2):
                host.step_(shards[0], local_U, grad_VD[local_U], decay, rules[0], coefficients)
        line = torch.tensor([[0.5, *padded(coefficients), 0.01, 0.02, t]], dtype=torch.float64)
        local_V = torch.where(mask_V, every_V, -1)
        step = (local_V, grad_VD, line.repeat(3, 1), torch.tensor([1]))
        local_V, grad_VD, lines, index = (values.to(device) for values in step)
        expected_VD = shards[1].float().cpu() * 0.5 * mask_V[:, None]
        assert torch.equal(device_kernels.ahead.read_ahead(shards[1], local_V, lines, index).cpu(), expected_VD)
        device_kernels.ahead.step_ahead_(shards[1], local_V, grad_VD, rules[1], lines, index, all_rows, False)
        found, expected = [
            [shard.float().cpu(), *rule.slots.values()] for shard, rule in zip(shards, rules, strict=True)
        ]
        for k, (a, b) in enumerate(zip(found, expected, strict=True)):
            # A sum over a row has another order, so that its last bits may differ, and the rounding of a row with them.
            tolerance = 0.0 if rule != "rowwise_adagrad" else 40 * torch.finfo(torch.float32).eps if k else 2.0**-7
            torch.testing.assert_close(a, b.cpu(), rtol=tolerance, atol=0)


@running
@pytest.mark.parametrize("rule", ["sgd", "adagrad", "rowwise_adagrad", "lazy_adam"])
@pytest.mark.parametrize(("scope", "coupling", "shrink"), [("in_batch", "l2", 0.01), ("full", "decoupled", 0.9)])
def test_rows_of_bfloat16_after_steps_ahead_equal_those_of_the_host(rule, scope, coupling, shrink):
    """Full decay is flushed after 18 steps, each of which shrinks rows to a tenth: 2^-60 is the least scale."""
    device = torch.device("cpu" if INTERPRETING else "cuda")
    rows_VD, chosen = torch.linspace(-1, 1, 35).view(7, 5).bfloat16(), config(rule, scope, coupling, shrink=shrink)
    host_table, host = start(chosen, rows_VD.clone())
    table, optimizer = start(chosen.model_copy(update={"kernels": "triton"}), rows_VD.to(device))
    grads = iter(batches(3, 40, 7, torch.float32))
    for count in (1, 15, 9, 15):
        taken = 0
        while taken < count:
            steps = optimizer.steps_ahead(count - taken)
            lines = torch.from_numpy(optimizer.look_ahead(steps)).to(device)
            for k in range(steps):
                rows_U, grad_UD = next(grads)
                host.step(rows_U, grad_UD)
                optimizer.step_ahead(rows_U.to(device), grad_UD.to(device), lines, torch.tensor([k], device=device))
            taken += steps
        if count == 9:
            continue  # not flushed before the next steps
        # The sums of row-wise Adagrad have another order.
        rtol = 2.0**-7 if rule == "rowwise_adagrad" else 0.0
        torch.testing.assert_close(table.flush().float().cpu(), host_table.flush().float(), rtol=rtol, atol=0)


@interpreted
@pytest.mark.parametrize("row", [-1, 4])
def test_an_invalid_row_index_is_an_error(row):
    table, optimizer = start(config(scope="full", kernels="triton"), torch.zeros(4, 5))
    with pytest.raises(IndexError):
        optimizer.step(torch.tensor([0, row]), torch.zeros(2, 5))
    with pytest.raises(IndexError):
        table.read(torch.tensor([0, row]))


@on_gpu
@pytest.mark.parametrize("rule", ["sgd", "adagrad", "rowwise_adagrad", "lazy_adam"])
def test_a_step_does_not_synchronise(rule):
    _, optimizer = start(config(rule, "full", kernels="triton"), torch.ones(7, 5, device="cuda"))
    rows_U, grad_UD = torch.arange(3, device="cuda"), torch.ones(3, 5, device="cuda")
    optimizer.step(rows_U, grad_UD)  # compiles, which may synchronise
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step(rows_U, grad_UD)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
@pytest.mark.parametrize("row", [-1, 4])
def test_an_invalid_row_index_is_an_error_of_the_gpu(row):
    """As with an index error of torch, the process cannot use the GPU afterwards; hence a process of its own."""
    script = f"""
import torch
from tests.optim.cases import config, start
table, optimizer = start(config(scope="full", kernels="triton"), torch.zeros(4, 5, device="cuda"))
optimizer.step(torch.tensor([0, {row}], device="cuda"), torch.zeros(2, 5, device="cuda"))
torch.cuda.synchronize()
"""
    done = python("-c", script)
    assert done.returncode != 0
    assert "row index outside the shard" in done.stdout


@on_gpu
def test_more_elements_than_32_bits_can_index():
    rows, dim = 2**31 // 64 + 10, 64
    if torch.cuda.mem_get_info()[0] < 12 * rows * dim:
        pytest.skip("needs 26 GB of GPU memory")
    table, optimizer = start(config(scope="full", kernels="triton"), torch.ones(rows, dim, device="cuda"))
    local_U = torch.tensor([5, rows - 1], device="cuda")
    optimizer.step(local_U, torch.ones(2, dim, device="cuda"))
    assert torch.equal(table.read(local_U)[0], table.read(local_U)[1])
    assert not torch.equal(table.read(local_U), table.read(local_U - 1))


@pytest.mark.skipif(INTERPRETING, reason="the interpreter takes tables on CPUs")
@installed
def test_triton_is_the_default_on_gpus_only():
    assert type(chosen("auto", "cuda")).__name__ == "TritonKernels"
    with pytest.raises(UserError, match="triton runs on GPUs, but the tables are on cpu; use auto or reference"):
        chosen("triton", "cpu")


@pytest.mark.parametrize(
    ("version", "missing"),
    [(None, "the package triton, which is not installed"), ("3.5.1", "triton 3.6 or newer, not 3.5.1")],
)
def test_gpus_get_the_reference_without_a_new_enough_triton(version, missing, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", version and SimpleNamespace(__version__=version))
    assert type(chosen("auto", "cuda")).__name__ == "ReferenceKernels"
    with pytest.raises(UserError, match=f"triton needs {missing}; use auto or reference"):
        chosen("triton", "cpu")
