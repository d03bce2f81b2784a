"""Which kernels a shard gets."""

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
        name = "numba" if device.type == "cpu" else "reference"
    if name == "reference":
        return ReferenceKernels()
    assert name == "numba", name
    if device.type != "cpu":
        raise UserError(f"optim.kernels numba runs on CPUs, but the tables are on {device}; use auto or reference")
    from distrec.optim.kernels.cpu import NumbaKernels  # here, as importing numba takes a good part of a second

    return NumbaKernels()
