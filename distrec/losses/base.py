"""Interface and registry of losses.

A loss is a section of the configuration: its fields are its options. It declares in `reads` what it reads of a step,
and gets an object with these fields only.
"""

from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from distrec.core.registry import Registry
from distrec.core.section import Part
from distrec.losses.row_sums import log_sum_exp
from distrec.sharding.collectives import Exchange
from distrec.sharding.differentiable import StepExchange
from distrec.sharding.table import TableSpec


class GlobalBatch(NamedTuple):
    """Representations of the pairs of all workers, by position in the global batch. Differentiable."""

    users_BD: Tensor
    items_BD: Tensor
    """Those of the positives."""
    user_ids_B: Tensor
    item_ids_B: Tensor
    own: slice
    """The pairs of this worker."""

    def unique_users(self) -> tuple[Tensor, Tensor]:
        """Return (representations of the distinct users (U, D), number of pairs of each (U,))."""
        return _unique(self.users_BD, self.user_ids_B)

    def unique_items(self) -> tuple[Tensor, Tensor]:
        """Return (representations of the distinct positives (U, D), number of pairs of each (U,))."""
        return _unique(self.items_BD, self.item_ids_B)


def _unique(rows_BD: Tensor, ids_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row of the first occurrence of each id, by ascending id, and the number of its occurrences."""
    _, inverse_B, counts_U = torch.unique(ids_B, return_inverse=True, return_counts=True)
    position_B = torch.arange(len(ids_B), device=ids_B.device)
    first_U = torch.full_like(counts_U, len(ids_B)).scatter_reduce_(0, inverse_B, position_B, "amin")
    return rows_BD.index_select(0, first_U), counts_U


class Catalogue(NamedTuple):
    """The whole catalogue, for losses over all items. Each worker has the items that it owns.

    In steps that stay on GPUs each worker has all items, and `exchange` is that of a worker alone.
    """

    users_BD: Tensor
    """Representations of the users of this worker's pairs."""
    items_VD: Tensor
    """Representations of this worker's items."""
    positive_B: Tensor
    """Of the pairs of all workers: index of the positive among these items, -1 where another worker owns it."""
    exchange: Exchange


class LazyScores(Protocol):
    """Scores of pairs that are computed when a loss asks for them."""

    def scores(self) -> tuple[Tensor, Tensor]:
        """Return the scores of the positives (B,) and of the negatives (B, N)."""

    def log_sum_exp(self, temperature: float) -> tuple[Tensor, Tensor]:
        """Return the scores of the positives and log sum_j e^{s_uj / t} of the negatives, (B,) both."""


class LossInputs:
    """What a loss reads of a step at one worker: `pairs` to `exchange`, and the fields that it declares in `reads`."""

    pairs: int
    """Pairs of the global batch, the divisor of a mean."""
    items: int
    """Items of the catalogue."""
    draws: int
    """Negatives drawn for a pair, masked ones included: N; in-batch N - 1, as the pair's own positive is no draw."""
    workers: int
    rank: int
    """This worker, from 0."""
    exchange: StepExchange
    """Differentiable collectives over the workers."""
    positive_B: Tensor
    """Scores of the positives."""
    negative_BN: Tensor
    """Scores of the negatives; a negative at -inf is masked, as it is a known positive of that user."""
    unmasked_B: Tensor
    """Number of the pair's negatives that are not masked."""
    log_q_BN: Tensor
    """log of each negative's sampling probability, (B, N) or (1, N)."""
    extra_BM: Tensor
    """Scores of M extra positives of the pair's user, drawn uniformly from its training items with replacement. M is
    the option `extra_positives` of the loss."""
    degree_B: Tensor
    """Training interactions of the pair's user, float32."""
    positive_degree_B: Tensor
    """Training interactions of the pair's positive, float32."""
    mean_degree: float
    """Training interactions of the average user that has any."""
    user_norm2_B: Tensor
    """Squared norms of the representations of the users, the positives and the negatives ((B, N) or (1, N))."""
    positive_norm2_B: Tensor
    negative_norm2_BN: Tensor
    users_BD: Tensor
    """Representations of the pairs' users, and of their positives."""
    positives_BD: Tensor
    user_rows_BD: Tensor
    """Rows of the model's tables of the pairs' users and positives, before the model; several tables adjoin."""
    positive_rows_BD: Tensor
    user_logit_B: Tensor
    """Logits of the model, each of a row alone (`EmbeddingConfig.logits`): of the users, the positives and the
    negatives ((B, N) or (1, N))."""
    positive_logit_B: Tensor
    negative_logit_BN: Tensor
    user_B: Tensor
    """Index of the pair's user among those of this worker, int64. All pairs of a user lie on one worker."""
    users: int
    """Bound on `user_B`: indices are below it."""
    tables: dict[str, Tensor]
    """Rows of the loss's own tables, (B, width), by name: of the pair's user or of its positive."""
    batch: GlobalBatch
    catalogue: Catalogue

    def __init__(self, lazy: "LazyScores | None" = None, **fields: Any) -> None:
        """Take the fields; `lazy` gives the scores that are not among them, when they are read."""
        self.__dict__.update(fields)
        self._lazy = lazy

    def log_sum_exp(self, temperature: float) -> Tensor:
        """Return log sum_j e^{s_uj / t} over the negatives of each pair, (B,); -inf if it has none.

        Read it before `positive_B`: on a GPU the two are then computed together.
        """
        if self._lazy is not None and "positive_B" not in self.__dict__:
            self.positive_B, log_sum_B = self._lazy.log_sum_exp(temperature)
            return log_sum_B
        if self.negative_BN.shape[1] == 0:
            return self.positive_B.new_full((len(self.negative_BN),), -torch.inf)
        return log_sum_exp(self.negative_BN, temperature)

    def __getattr__(self, name: str) -> Any:
        lazy: LazyScores | None = self.__dict__.get("_lazy")
        if lazy is not None and name in ("positive_B", "negative_BN"):
            self.positive_B, self.negative_BN = lazy.scores()
            return self.__dict__[name]
        raise AttributeError(f"{name} is not among the inputs of this loss: name it in `reads`")


class Loss(Part):
    """A loss. A subclass implements `per_pair`, or `share` if the loss of the batch is no mean over its pairs."""

    reads: ClassVar[tuple[str, ...]] = ()
    """Fields of `LossInputs` that it reads, beside those that every loss has."""
    similarity: ClassVar[Literal["cosine", "dot"] | None] = None
    """The one similarity that it is defined on; None: any."""
    sums_exponentials: ClassVar[bool] = False
    """Whether it reads the scores of negatives by `LossInputs.log_sum_exp`, for which none of them need be kept."""
    draws_known_positives: ClassVar[bool] = False
    """Whether its negatives must come uniformly from all items, known positives included, as it subtracts these."""

    def needs(self) -> tuple[str, ...]:
        """Return the fields of `LossInputs` that it reads with these options."""
        return self.reads

    def tables(self) -> tuple[TableSpec, ...]:
        """Return the loss's own tables, trained like those of the model and ignored by evaluation."""
        return ()

    def share(self, step: LossInputs) -> Tensor:
        """Return this worker's share of the loss, (); shares sum to the loss of the global batch."""
        return self.per_pair(step).sum() / step.pairs

    def per_pair(self, step: LossInputs) -> Tensor:
        """Return the loss of each pair of this worker, (B,)."""
        raise NotImplementedError


losses: Registry[type[Loss]] = Registry("loss")
