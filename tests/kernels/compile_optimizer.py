"""Compile every Triton program of the optimizer for an absent GPU and check its machine code.

A script, as it replaces Triton's driver: `python -m tests.kernels.compile_optimizer 90` for compute capability 9.0.
"""

import sys
from collections.abc import Iterator

import torch

from distrec.kernels.optimizer import Decay, MissedSteps
from distrec.kernels.triton.optimizer import TritonKernels
from distrec.optim.config import OptimConfig
from distrec.optim.rules import RULES
from tests.kernels.absent_gpu import arithmetic_is_exact, compile_for

V, U, D = 100, 33, 64
HOST_SCALARS = {"c0", "c1", "c2", "c3", "shrink", "l2", "log_decay1", "log_decay2"}


def call_all(dtype: torch.dtype) -> Iterator[str]:
    """Call each kernel for each rule; yield the name of each after its call."""
    kernels, local_U = (
        TritonKernels(lambda local_U: local_U),
        torch.arange(U),
    )  # row indices on the CPU are checked before a launch
    stored_VD, grad_UD = torch.ones(V, D, dtype=dtype), torch.ones(U, D, dtype=dtype)
    kernels.affine_(stored_VD, torch.ones_like(stored_VD), local_U, torch.ones(4, U, dtype=torch.float64))
    yield "affine"
    for coefficients_SC in (None, torch.ones(8, 8, dtype=torch.float64)):
        for rows_VD in (stored_VD, stored_VD.bfloat16()):
            kernels.read_ahead(rows_VD, local_U, coefficients_SC, torch.zeros(1, dtype=torch.int64))
            yield "gather"
    for name in RULES:
        rule = RULES[name](stored_VD, **{key: getattr(OptimConfig(), key) for key in RULES[name].hyperparameters})
        coefficients = rule.coefficients(0.1, 3)
        kernels.step_(stored_VD, local_U, grad_UD, Decay(), rule, coefficients)
        yield f"step of {name}"
        ahead = torch.ones(8, 8, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
        for how in ((False, False), (True, False), (True, True)):
            kernels.step_ahead_(stored_VD, local_U, grad_UD, rule, *ahead, *how)
            yield f"step ahead of {name}, {how}"
        if dtype == torch.float32:
            for all_rows in (False, True):
                kernels.step_ahead_(stored_VD.bfloat16(), local_U, grad_UD, rule, *ahead, all_rows, False)
                yield f"step ahead of {name}, rounded, {all_rows}"
        if name not in ("sgd", "momentum"):  # never replayed
            kernels = TritonKernels(lambda local_U: local_U)
            missed = MissedSteps(torch.ones(2 + len(coefficients), 8, dtype=torch.float64), 5, 3, 0.1, 0)
            kernels.replay_(stored_VD, local_U, torch.zeros(U, dtype=torch.int32), missed, rule)
            yield f"replay of {name}"


def check(name: str, kernel) -> None:
    """Check: host scalars are float64, arithmetic is IEEE and not fused, row indices are checked, a cubin exists."""
    signature, ptx = kernel.src.signature, kernel.asm["ptx"]
    narrow = {k for k in HOST_SCALARS & signature.keys() if signature[k] not in ("fp64", "constexpr")}
    assert not narrow, f"{name} takes {narrow} in float32"
    assert ("step" not in name) or HOST_SCALARS & signature.keys() >= {"c0", "shrink", "l2"}, signature
    # The exponentials of the replay of Adam, in float64, have fused multiply-adds of their own.
    arithmetic_is_exact(name, ptx, r"fma\S*\.f32" if name == "replay of adam" else "fma")
    assert "__assertfail" in ptx, f"{name} does not check row indices"
    assert kernel.asm["cubin"], name


if __name__ == "__main__":
    made, names = compile_for(int(sys.argv[1])), []
    for dtype in (torch.float32, torch.float64):
        for name in call_all(dtype):
            names.append(f"{name}, {dtype}")
            assert len(made) == len(names), names
            check(name, made[-1])
    print(len(made), "launches:", "; ".join(names))
