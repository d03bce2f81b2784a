"""How negatives are drawn."""

from typing import Literal

from pydantic import Field

from distrec.config import Section


class SamplingConfig(Section):
    distribution: Literal["uniform", "popularity"] = "uniform"
    """Items are drawn evenly, or in proportion to their training degree to the power `beta`."""
    beta: float = Field(0.75, ge=0)
    """Exponent of `popularity`: 0 is uniform over items seen in training, 1 is the training frequency."""
    negatives: int = Field(256, ge=0)
    """Negatives N: of each pair, or of the whole batch when `shared`."""
    shared: bool = True
    """One set of negatives for all pairs of a batch: scoring becomes a matrix product."""
    reject: bool = True
    """Never use a known training positive of the user as its negative. Exact. A user to whom every item that can be
    drawn is known has no negatives: its pairs cost nothing and teach nothing."""
