"""Configuration of the loss."""

from pydantic import Field

from distrec.core.config import Section


class LossConfig(Section):
    name: str = "ssm"
    """Loss; `bpr`, `ssm` (sampled softmax, also called InfoNCE), or `softmax` (exact, over all items: it draws no
    negatives, and every item row has a gradient at each step)."""
    temperature: float = Field(0.1, gt=0)
    """Temperature t; scores are divided by it (`ssm`, `softmax`)."""
    log_q: bool = False
    """`ssm`: correct for the sampling distribution of the negatives by subtracting log(N q) from their scores."""
