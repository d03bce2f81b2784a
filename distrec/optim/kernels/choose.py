"""Which kernels a shard gets."""

from importlib.util import find_spec

import torch

from distrec.errors import UserError
from distrec.optim.kernels.bfloat16 import Bfloat16Kernels
from distrec.optim.kernels.interface import Kernels
from distrec.optim.kernels.reference import ReferenceKernels
from distrec.tables.table import Table


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
        name = {"cpu": "numba", "cuda": "triton" if find_spec("triton") else "reference"}.get(device.type, "reference")
    return {"reference": _reference, "numba": _numba, "triton": _triton}[name](device)


def _reference(device: torch.device) -> Kernels:
    return ReferenceKernels()


def _numba(device: torch.device) -> Kernels:
    if device.type != "cpu":
        raise UserError(f"optim.kernels numba runs on CPUs, but the tables are on {device}; use auto or reference")
    from distrec.optim.kernels.cpu import NumbaKernels  # here, as importing numba takes a good part of a second

    return NumbaKernels()


def _triton(device: torch.device) -> Kernels:
    if find_spec("triton") is None:
        raise UserError("optim.kernels triton needs the package triton, which is not installed; use auto or reference")
    from distrec.optim.kernels.gpu import INTERPRETED, TritonKernels  # here, as triton may be missing

    if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        raise UserError(f"optim.kernels triton runs on GPUs, but the tables are on {device}; use auto or reference")
    return TritonKernels()
