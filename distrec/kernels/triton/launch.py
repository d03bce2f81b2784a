"""Options and arguments that all launches of Triton programs share. Importable only where Triton is installed."""

from typing import Any

import triton
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator]
def _nothing() -> None:
    pass


INTERPRETED = not isinstance(_nothing, triton.JITFunction)
"""Whether Triton's interpreter runs the programs, also on CPU tensors: TRITON_INTERPRET=1 when Triton was imported."""

OPTIONS: dict[str, Any] = {
    "enable_fp_fusion": False,  # for the same bits as the loops for CPUs
    "debug": True,  # enables device_assert, which detects invalid row indices
    "sanitize_overflow": False,  # otherwise also enabled by `debug`
}
if INTERPRETED:
    OPTIONS = {}


def aligned(tensor: Tensor) -> Tensor:
    """Return the tensor contiguous at an address that is a multiple of 16.

    Triton compiles another program for other addresses, in which a sum over a row might have another order.
    """
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()
