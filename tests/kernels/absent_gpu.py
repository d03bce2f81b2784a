"""Compilation of Triton programs for an absent GPU. For scripts, as it replaces Triton's driver."""

import re

from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver


class AbsentGPU:
    """The methods of a driver that compilation calls."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self._target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def compile_for(capability: int) -> list:
    """Make launches compile only, for this compute capability; return the list that collects the results."""
    driver.set_active(AbsentGPU(capability))
    found, launch = [], JITFunction.run

    def run(self, *arguments, warmup, **options):
        found.append(launch(self, *arguments, warmup=True, **options))
        return found[-1]

    JITFunction.run = run
    return found


def arithmetic_is_exact(name: str, ptx: str, fused: str = "fma") -> None:
    """Assert that operations are IEEE and not fused."""
    inexact = re.findall(rf"(?:add|sub|mul|div|rcp|sqrt)\.\S*(?:approx|full|ftz)\S*|{fused}", ptx)
    assert not inexact, f"{name}: {inexact}"
