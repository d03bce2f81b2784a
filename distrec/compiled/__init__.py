"""How loops are compiled and run on the CPU. Imported late: loading the compiler takes a good part of a second."""

import torch


def takes(rows_UD: torch.Tensor) -> bool:
    """Whether there are compiled loops for a tensor of this kind, where it lies."""
    return rows_UD.device.type == "cpu" and rows_UD.dtype in (torch.float32, torch.float64)
