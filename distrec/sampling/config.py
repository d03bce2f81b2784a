"""Configuration of negative sampling."""

from typing import Literal, Self

from pydantic import Field, model_validator

from distrec.core.section import Section


class SamplingConfig(Section):
    distribution: Literal["uniform", "popularity", "mixture", "in_batch"] = "uniform"
    """Distribution of the negatives: `uniform` over all items; `popularity`, proportional to the training degree to the
    power `beta`; `mixture` of the two; or `in_batch`, where the negatives of a pair are the positives of all other
    pairs of its step, whatever `negatives` is (each stream then holds the items of all training interactions)."""
    beta: float = Field(0.75, ge=0)
    """Exponent of `popularity`: 0 is uniform over items seen in training, 1 is the training frequency."""
    uniform_share: float = Field(0.5, gt=0, lt=1)
    """For `mixture`: fraction of the draws that are uniform over all items."""
    negatives: int = Field(256, ge=0)
    """Negatives N: of each pair, or of the whole batch when `shared`."""
    shared: bool = True
    """Use one set of negatives for all pairs of a batch: scoring becomes a matrix product."""
    reject: bool = True
    """Never use a known training positive of the user as its negative. Exact. The pairs of a user for whom every item
    that can be drawn is a known positive have no negatives, and so neither a loss nor a gradient."""
    hardest: int = Field(0, ge=0)
    """Use only this many of a pair's negatives, those with the highest current scores (dynamic negative sampling:
    Zhang, Chen, Wang and Yu, SIGIR 2013); 0 uses all."""

    def unused(self) -> set[str]:
        names = set() if self.distribution in ("popularity", "mixture") else {"beta"}
        names |= set() if self.distribution == "mixture" else {"uniform_share"}
        return names | {"negatives"} if self.distribution == "in_batch" else names

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.distribution == "in_batch" and not self.shared:
            raise ValueError("distribution=in_batch has the same negatives for all pairs: set shared=true")
        if self.hardest > self.negatives:
            raise ValueError(f"hardest={self.hardest} exceeds negatives={self.negatives}: draw at least that many")
        return self
