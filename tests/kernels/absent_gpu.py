"""Compiling Triton's programs for a GPU that need not be there. For scripts, as it puts another driver into Triton."""

import re

from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver


class AbsentGPU:
    """As much of a driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self._target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def compile_for(capability: int) -> list:
    """From now on a launch compiles only, for this compute capability; returns where the results go."""
    driver.set_active(AbsentGPU(capability))
    found, launch = [], JITFunction.run

    def run(self, *arguments, warmup, **options):
        found.append(launch(self, *arguments, warmup=True, **options))
        return found[-1]

    JITFunction.run = run
    return found


def arithmetic_is_exact(name: str, ptx: str, fused: str = "fma") -> None:
    """Operations are IEEE's, and none is fused."""
    inexact = re.findall(rf"(?:add|sub|mul|div|rcp|sqrt)\.\S*(?:approx|full|ftz)\S*|{fused}", ptx)
    assert not inexact, f"{name}: {inexact}"
