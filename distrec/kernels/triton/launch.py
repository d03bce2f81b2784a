"""What all launches of Triton's programs share. `installed.py` says whether this file can be imported."""

from typing import Any

import torch
import triton


@triton.jit
def _nothing() -> None:
    pass


INTERPRETED = not isinstance(_nothing, triton.JITFunction)
"""Whether Triton's interpreter runs the programs (TRITON_INTERPRET=1 when Triton was imported), also on CPU tensors."""

OPTIONS: dict[str, Any] = {
    "enable_fp_fusion": False,  # the digits of the loops for the CPU
    "debug": True,  # without it there is no device_assert, and a wrong row number would go unnoticed
    "sanitize_overflow": False,  # what else `debug` would check
}
if INTERPRETED:
    OPTIONS = {}


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, contiguous at an address that is a multiple of 16: others are compiled for anew, and a sum over a row
    might then have another order."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()
