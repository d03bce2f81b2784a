"""Choice of compiled code: what can run for a device and dtype. Loads numba and Triton only where they are called."""

from collections.abc import Callable

import torch
from torch import Tensor

from distrec.core.errors import UserError
from distrec.kernels.bfloat16 import Bfloat16Kernels
from distrec.kernels.optimizer import ReferenceKernels

_OLDEST_TRITON = (3, 6)  # older ones round float64 arguments to float32, or flush small float32 values to 0


def missing_triton() -> str | None:
    """Return what prevents Triton's programs from running on this machine, whatever the device; None if nothing."""
    try:
        import triton  # here, as it may be missing, and takes most of a second
    except ImportError:
        return "the package triton, which is not installed"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < _OLDEST_TRITON:
        return f"triton {'.'.join(map(str, _OLDEST_TRITON))} or newer, not {triton.__version__}"
    return None


def has_kernel(rows_UD: Tensor) -> bool:
    """Return whether numba's loops support rows of this device and dtype."""
    return rows_UD.device.type == "cpu" and rows_UD.dtype in (torch.float32, torch.float64)


def has_gpu_kernel(rows_UD: Tensor) -> bool:
    """Return whether Triton's programs support rows of this device and dtype, and Triton is installed."""
    return (
        rows_UD.device.type == "cuda" and rows_UD.dtype in (torch.float32, torch.float64) and missing_triton() is None
    )


def kernels_for(
    name: str, device: torch.device, dtype: torch.dtype, row_ids: Callable[[Tensor], Tensor]
) -> ReferenceKernels:
    """Return the kernels named by `optim.kernels` for a shard.

    Args:
        name: auto, reference, numba or triton.
        device: of the shard.
        dtype: of the stored rows; bfloat16 is updated in float32 copies.
        row_ids: maps local rows to rows of the whole table; the rounding to bfloat16 depends on them.

    Raises:
        UserError: the kernels do not run on this device.
    """
    if name == "auto":
        on_gpu = device.type == "cuda" and missing_triton() is None
        name = "numba" if device.type == "cpu" else "triton" if on_gpu else "reference"
    kernels = ReferenceKernels()
    if name != "reference":
        kernels = _numba(device) if name == "numba" else _triton(device, row_ids)
    return Bfloat16Kernels(kernels, row_ids) if dtype == torch.bfloat16 else kernels


def _numba(device: torch.device) -> ReferenceKernels:
    if device.type != "cpu":
        raise UserError(f"optim.kernels numba runs on CPUs, but the tables are on {device}; use auto or reference")
    from distrec.kernels.numba.optimizer import NumbaKernels

    return NumbaKernels()


def _triton(device: torch.device, row_ids: Callable[[Tensor], Tensor]) -> ReferenceKernels:
    if reason := missing_triton():
        raise UserError(f"optim.kernels triton needs {reason}; use auto or reference")
    from distrec.kernels.triton.launch import INTERPRETED
    from distrec.kernels.triton.optimizer import TritonKernels

    if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        raise UserError(f"optim.kernels triton runs on GPUs, but the tables are on {device}; use auto or reference")
    return TritonKernels(row_ids)
