"""Losses on scores: what they see, and the table of their names."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from distrec.losses.config import LossConfig
from distrec.registry import Registry


@dataclass(frozen=True)
class Scores:
    """The scores of one worker's pairs. A negative at -inf does not count: it is a known positive of that user."""

    positive_B: torch.Tensor
    negative_BN: torch.Tensor
    log_q_BN: torch.Tensor | None = None
    """log of the probability that each negative is drawn with, (B, N) or (1, N), if the configuration asks for it."""


Loss = Callable[[Scores, LossConfig], torch.Tensor]
"""Loss of each pair, (B,). The trainer averages over the pairs of all workers."""

losses: Registry[Loss] = Registry("loss")


def softplus(x: torch.Tensor) -> torch.Tensor:
    """log(1 + e^x), elementwise. torch's own goes over to x at 20, which is too early for float64."""
    return torch.nn.functional.softplus(x, threshold=40.0)
