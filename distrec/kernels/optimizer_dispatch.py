"""Which kernels a shard gets."""

import torch

from distrec.core.errors import UserError
from distrec.kernels.availability import triton_lacks
from distrec.kernels.bfloat16 import Bfloat16Kernels
from distrec.kernels.optimizer import Kernels
from distrec.kernels.torch_optimizer import ReferenceKernels
from distrec.sharding.table import Table


def kernels_for(name: str, table: Table) -> Kernels:
    """The kernels of `optim.kernels` for this shard.

    Raises:
        UserError: kernels that do not run on its device.
    """
    found = _for_device(name, table.stored_VD.device)
    if table.stored_VD.dtype == torch.bfloat16:
        return Bfloat16Kernels(found, lambda local_U: table.partition.row(local_U, table.worker))
    return found


def _for_device(name: str, device: torch.device) -> Kernels:
    if name == "auto":
        if device.type == "cpu":
            name = "numba"
        else:
            name = "triton" if device.type == "cuda" and not triton_lacks() else "reference"
    if name == "reference":
        return ReferenceKernels()
    return {"numba": _numba, "triton": _triton}[name](device)


def _numba(device: torch.device) -> Kernels:
    if device.type != "cpu":
        raise UserError(f"optim.kernels numba runs on CPUs, but the tables are on {device}; use auto or reference")
    from distrec.kernels.numba.optimizer import NumbaKernels  # here, as importing numba takes a good part of a second

    return NumbaKernels()


def _triton(device: torch.device) -> Kernels:
    if lacking := triton_lacks():
        raise UserError(f"optim.kernels triton needs {lacking}; use auto or reference")
    from distrec.kernels.triton.launch import INTERPRETED  # here, as triton may be missing
    from distrec.kernels.triton.optimizer import TritonKernels

    if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        raise UserError(f"optim.kernels triton runs on GPUs, but the tables are on {device}; use auto or reference")
    return TritonKernels()
