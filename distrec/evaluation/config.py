"""Configuration of the evaluation."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from distrec.core.config import split_words
from distrec.core.errors import UserError
from distrec.core.section import Section
from distrec.evaluation.catalogue import CATALOGUE_METRICS
from distrec.evaluation.metrics import METRICS


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, int) else split_words(value)


class EvalConfig(Section):
    k: Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_one_or_more), Field(min_length=1)] = (20,)
    """Cut-offs K of the rankings: one number, or a list."""
    metrics: Annotated[tuple[str, ...], BeforeValidator(split_words), Field(min_length=1)] = ("recall", "ndcg")
    """Metrics at each K, or `all`. Means over users: recall, ndcg, precision, hit_rate, mrr, map; of all lists:
    coverage (share of the items recommended to anyone), gini (inequality of the items' numbers of lists), popularity
    (mean number of training interactions of a recommended item)."""
    strata: bool = False
    """Also recall and ndcg by stratum: the parts that hits of `popular` (first 5 % of the items by training
    interactions), `neutral` (next 15 %) and `unpopular` items make up, which sum to the whole; and the means over
    `active` (first 5 % of the users), `moderate` (next 15 %) and `inactive` users."""
    magnitudes: bool = False
    """Also the correlation of log(training interactions + 2) with the norm of the representations, of users and of
    items, and the metrics by `dot` beside those by `cosine`. A second ranking: evaluation takes twice as long."""
    diagnostics: bool = True
    """Measure the representations at each evaluation on the validation part (effective rank, cosines, norms), and warn
    when they collapse."""
    bootstrap: int = Field(0, ge=0)
    """Resamples of the users for 95 % intervals of the metrics on the test part, and of `distrec evaluate`; 0: none."""
    per_user: Path | None = None
    """Parquet file to which `distrec evaluate` writes the metrics of each user. Training writes those on the test part
    to `test_users.parquet` in the run folder."""
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

    def notes(self, items: int) -> list[str]:
        """Return a line on cut-offs that are beyond a catalogue of so many items, if there are any."""
        beyond = [str(k) for k in self.k if k > items]
        text = f"eval.k={','.join(beyond)}: the data have {items:,} items, so that all are recommended"
        return [text] if beyond else []

    @field_validator("metrics")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = [*METRICS, *CATALOGUE_METRICS]
        if names == ("all",):
            return tuple(known)
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"unknown metric {', '.join(unknown)}; known: all, {', '.join(known)}")
        return tuple(dict.fromkeys(names))


def no_similarity(key: str, value: str, use: str) -> UserError:
    """Return the error of a key of `eval` that needs representations of users and items."""
    return UserError(f"eval.{key}={value}: this model's scores are not similarities; use {use}")
