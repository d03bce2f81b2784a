"""How negatives are drawn."""

from typing import Literal, Self

from pydantic import Field, model_validator

from distrec.core.config import Section


class SamplingConfig(Section):
    distribution: Literal["uniform", "popularity", "mixture", "in_batch"] = "uniform"
    """Items are drawn evenly, in proportion to their training degree to the power `beta`, or one or the other at random
    (`mixture`); or a pair's negatives are the positives of all other pairs of its step, whatever `negatives` says
    (`in_batch`, for which each stream holds the items of all training interactions)."""
    beta: float = Field(0.75, ge=0)
    """Exponent of `popularity`: 0 is uniform over items seen in training, 1 is the training frequency."""
    uniform_share: float = Field(0.5, gt=0, lt=1)
    """For `mixture`: the share of draws that are uniform over all items."""
    negatives: int = Field(256, ge=0)
    """Negatives N: of each pair, or of the whole batch when `shared`."""
    shared: bool = True
    """One set of negatives for all pairs of a batch: scoring becomes a matrix product."""
    reject: bool = True
    """Never use a known training positive of the user as its negative. Exact. A user to whom every item that can be
    drawn is known has no negatives: its pairs cost nothing and teach nothing."""
    hardest: int = Field(0, ge=0)
    """Of the negatives drawn for a pair, use those so many that score highest at the time (dynamic negative sampling:
    Zhang, Chen, Wang and Yu, SIGIR 2013); 0 uses all."""

    @model_validator(mode="after")
    def _in_batch_is_shared(self) -> Self:
        if self.distribution == "in_batch" and not self.shared:
            raise ValueError("distribution=in_batch has the same negatives for all pairs: set shared=true")
        return self

    @model_validator(mode="after")
    def _pool_is_large_enough(self) -> Self:
        if self.hardest > self.negatives:
            raise ValueError(f"hardest={self.hardest} of negatives={self.negatives}: draw at least as many as you use")
        return self
