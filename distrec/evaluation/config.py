"""Configuration of the evaluation."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from distrec.core.config import Section, split_words


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, int) else split_words(value)


class EvalConfig(Section):
    k: Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_one_or_more), Field(min_length=1)] = (20,)
    """Cut-offs K of the rankings: one number, or a list."""
    similarity: Literal["model", "dot", "cosine"] = "model"
    """Similarity that ranks: `model` is that of training; `dot` and `cosine` rank by the dot product or the cosine of
    the representations, whatever the training."""
    untrained_items: Literal["exclude", "include"] = "exclude"
    """Items without training interactions, whose rows only initial values and negatives determine: `exclude` leaves
    them out of the rankings, so that held-out interactions with them count as misses."""
    every: int = Field(1, ge=0)
    """Epochs between evaluations on the validation part; 0 disables them. The test part is evaluated once, last."""
    test: bool = True
    """Evaluate the test part at the end. false: not before `distrec evaluate` does."""
