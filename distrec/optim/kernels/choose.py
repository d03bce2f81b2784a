"""Which kernels a shard gets."""

import torch

from distrec.errors import UserError
from distrec.optim.kernels.bfloat16 import Bfloat16Kernels
from distrec.optim.kernels.interface import Kernels
from distrec.optim.kernels.reference import ReferenceKernels
from distrec.tables.table import Table

_OLDEST_TRITON = (3, 6)  # before it numbers lost digits on their way to the GPU, or float32 was flushed to 0 early


def kernels_for(name: str, table: Table) -> Kernels:
    """The kernels of `optim.kernels` for this shard.

    Raises:
        UserError: kernels that do not run on its device.
    """
    found = _for_device(name, table.stored_VD.device)
    if table.stored_VD.dtype == torch.bfloat16:
        return Bfloat16Kernels(found, lambda local_U: table.plan.row(local_U, table.worker))
    return found


def _for_device(name: str, device: torch.device) -> Kernels:
    if name == "auto":
        if device.type == "cpu":
            name = "numba"
        else:
            name = "triton" if device.type == "cuda" and not _triton_lacks() else "reference"
    if name == "reference":
        return ReferenceKernels()
    return {"numba": _numba, "triton": _triton}[name](device)


def _numba(device: torch.device) -> Kernels:
    if device.type != "cpu":
        raise UserError(f"optim.kernels numba runs on CPUs, but the tables are on {device}; use auto or reference")
    from distrec.optim.kernels.cpu import NumbaKernels  # here, as importing numba takes a good part of a second

    return NumbaKernels()


def _triton(device: torch.device) -> Kernels:
    if lacking := _triton_lacks():
        raise UserError(f"optim.kernels triton needs {lacking}; use auto or reference")
    from distrec.optim.kernels.gpu import INTERPRETED, TritonKernels  # here, as triton may be missing

    if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        raise UserError(f"optim.kernels triton runs on GPUs, but the tables are on {device}; use auto or reference")
    return TritonKernels()


def _triton_lacks() -> str | None:
    """What keeps the Triton kernels from running, wherever the tables are."""
    try:
        import triton  # here, as it may be missing, and takes a good part of a second
    except ImportError:
        return "the package triton, which is not installed"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < _OLDEST_TRITON:
        return f"triton {'.'.join(map(str, _OLDEST_TRITON))} or newer, not {triton.__version__}"
    return None
