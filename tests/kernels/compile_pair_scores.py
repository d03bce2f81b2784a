"""Compile the Triton programs for pair scores for an absent GPU and check the PTX. A script, as it replaces Triton's
driver: `python -m tests.kernels.compile_pair_scores 90` for compute capability 9.0."""

import re
import sys

import torch

from distrec.kernels.triton.pair_scores import CHUNK, PairScores
from tests.kernels.absent_gpu import arithmetic_is_exact, compile_for

NAMES = {"scores", "add_gradients", "first_chunks", "later_chunks", "add_chunks"}


def call_all(dim: int, dtype: torch.dtype, index: torch.dtype) -> None:
    """Launch every program, with more summands than one program adds. Programs are compiled, not run."""
    users, items = (torch.ones(9, dim, dtype=dtype, requires_grad=True) for _ in range(2))
    user_index, item_index = torch.zeros(10, dtype=index), torch.zeros(10, CHUNK, dtype=index)
    for in_order in (True, False):
        torch.use_deterministic_algorithms(in_order)
        PairScores.apply(users, items, user_index, item_index).sum().backward()
    one_each = item_index[:, :1].contiguous()
    PairScores.apply(users, items, user_index, one_each).sum().backward()


def check(kernel) -> None:
    """Assert unfused IEEE arithmetic, a fixed order of summation, checked indices, and a cubin."""
    name, ptx = kernel.metadata.name, kernel.asm["ptx"]
    arithmetic_is_exact(name, ptx)
    atomics = re.findall(r"\b(?:atom|red)\.", ptx)
    assert bool(atomics) == (name == "add_gradients"), f"{name} has no fixed order of summation"
    assert name != "scores" or "__assertfail" in ptx, f"{name} does not check indices"
    assert kernel.asm["cubin"], name


if __name__ == "__main__":
    made = compile_for(int(sys.argv[1]))
    call_all(64, torch.float32, torch.int32)
    call_all(300, torch.float32, torch.int64)
    call_all(3, torch.float64, torch.int32)
    for kernel in made:
        check(kernel)
    found = {kernel.metadata.name for kernel in made}
    assert found == NAMES, found
    print(len(made), "launches;", ", ".join(sorted(found)))
