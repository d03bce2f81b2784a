"""What is minimised."""

from pydantic import Field

from distrec.core.config import Section


class LossConfig(Section):
    name: str = "ssm"
    """Loss; `bpr`, `ssm` (sampled softmax, also called InfoNCE), or `softmax` (exact, over all items: it draws no
    negatives, and every item row has a gradient at each step)."""
    temperature: float = Field(0.1, gt=0)
    """Temperature t that scores are divided by (`ssm`, `softmax`)."""
    log_q: bool = False
    """`ssm`: correct for how negatives are drawn by subtracting log(N q) from their scores."""
