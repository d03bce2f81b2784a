"""Compiles every Triton program for a GPU that need not be there, and looks at the machine code. Run as a script, as it
puts another driver into Triton: `python -m tests.kernels.compile_optimizer 90` for compute capability 9.0."""

import sys

import torch

from distrec.kernels.optimizer import Decay, MissedSteps
from distrec.kernels.triton.optimizer import _REPLAYS, TritonKernels
from distrec.optim.config import OptimConfig
from distrec.optim.rules import RULES
from tests.kernels.absent_gpu import arithmetic_is_exact, compile_for

V, U, D = 100, 33, 64
HOST_NUMBERS = {"lr", "momentum", "beta1", "beta2", "eps", "shrink", "l2", "log_beta1", "log_beta2"}


def call_all(dtype: torch.dtype) -> None:
    """Each kernel, for each rule."""
    kernels, local_U = TritonKernels(), torch.arange(U)
    stored_VD, grad_UD = torch.ones(V, D, dtype=dtype), torch.ones(U, D, dtype=dtype)
    # Row numbers are checked on CPU tensors before a launch, so these are of rows that exist.
    kernels.affine_(stored_VD, torch.ones_like(stored_VD), local_U, torch.ones(4, U, dtype=torch.float64))
    for name in RULES:
        rule = RULES[name](stored_VD, OptimConfig(rule=name))
        kernels.step_(stored_VD, local_U, grad_UD, Decay(), rule, rule.coefficients(0.1, 3))
        if type(rule) in _REPLAYS:
            coefficients_CS = torch.ones(2 + len(rule.coefficients(0.1, 3)), 8, dtype=torch.float64)
            kernels.replay_(
                stored_VD, local_U, torch.zeros(U, dtype=torch.int32), MissedSteps(coefficients_CS, 5, 3, 0.1, 0), rule
            )


def check(kernel, ptx: str) -> None:
    """Float64 numbers from the host, IEEE arithmetic that is not fused, row numbers checked, a cubin made."""
    name, signature = kernel.metadata.name, kernel.src.signature
    narrow = {argument for argument in HOST_NUMBERS & signature.keys() if signature[argument] != "fp64"}
    assert not narrow, f"{name} takes {narrow} in float32"
    arithmetic_is_exact(name, ptx, r"fma\S*\.f32" if name == "replay_adam" else "fma")  # its exp, in float64, has some
    assert "__assertfail" in ptx, f"{name} does not check row numbers"
    assert kernel.asm["cubin"], name


if __name__ == "__main__":
    made = compile_for(int(sys.argv[1]))
    for dtype in (torch.float32, torch.float64):
        call_all(dtype)
    for kernel in made:
        check(kernel, kernel.asm["ptx"])
    print(len(made), "launches;", ", ".join(sorted({kernel.metadata.name for kernel in made})))
