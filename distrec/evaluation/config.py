"""What is measured, and when."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from distrec.core.config import Section


def _one_or_more(value: Any) -> Any:
    if isinstance(value, str):  # a shell that takes [ ] for itself is spared: eval.k=10,20
        return tuple(value.split(","))
    return (value,) if isinstance(value, int) else value


class EvalConfig(Section):
    k: Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_one_or_more), Field(min_length=1)] = (20,)
    """Cut-offs K of the rankings: a number, or a list."""
    every: int = Field(1, ge=0)
    """Evaluate on the validation part every so many epochs; 0 is never. The test part is looked at once, at the end."""
