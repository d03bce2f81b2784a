"""What models compute, compiled: each is a function of autograd whose readable form stands in the models."""

import torch

from distrec.kernels.availability import triton_lacks


def has_kernel(rows_UD: torch.Tensor) -> bool:
    """Whether there are loops, compiled for the CPU, for rows of this kind where they lie."""
    return rows_UD.device.type == "cpu" and _fits(rows_UD)


def has_gpu_kernel(rows_UD: torch.Tensor) -> bool:
    """Whether there are programs for rows of this kind where they lie, and what compiles them for GPUs is installed."""
    return rows_UD.device.type == "cuda" and _fits(rows_UD) and not triton_lacks()


def _fits(rows_UD: torch.Tensor) -> bool:
    return rows_UD.dtype in (torch.float32, torch.float64)
