"""What models compute on the CPU, compiled: each is a function of autograd whose readable form stands in the models."""

import torch


def takes(rows_UD: torch.Tensor) -> bool:
    """Whether there are compiled functions for rows of this kind, where they lie."""
    return rows_UD.device.type == "cpu" and rows_UD.dtype in (torch.float32, torch.float64)
