"""Configuration of the evaluation."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from distrec.core.config import Section


def _one_or_more(value: Any) -> Any:
    if isinstance(value, str):  # eval.k=10,20, for shells in which [ ] must be quoted
        return tuple(value.split(","))
    return (value,) if isinstance(value, int) else value


class EvalConfig(Section):
    k: Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_one_or_more), Field(min_length=1)] = (20,)
    """Cut-offs K of the rankings: one number, or a list."""
    every: int = Field(1, ge=0)
    """Epochs between evaluations on the validation part; 0 disables them. The test part is evaluated once, last."""
