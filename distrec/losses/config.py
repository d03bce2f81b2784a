"""What is minimised."""

from pydantic import Field

from distrec.config import Section


class LossConfig(Section):
    name: str = "ssm"
    """Loss; `bpr` or `ssm` (sampled softmax, also called InfoNCE)."""
    temperature: float = Field(0.1, gt=0)
    """Temperature t that scores are divided by (`ssm`)."""
    log_q: bool = False
    """`ssm`: correct for how negatives are drawn by subtracting log(N q) from their scores."""
