"""Interfaces of models, learners and scorers.

A model maps rows of its tables to representations; the score of a pair is the dot product or the cosine of the two.
Gradient descent trains every model alike. A solver has a learner of its own.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from distrec.core.registry import Registry
from distrec.core.section import OneOf, Part
from distrec.models.graph import Graph
from distrec.sampling.batch import Batch
from distrec.sampling.source import BatchSource
from distrec.sharding.collectives import Exchange
from distrec.sharding.initialization import Init, initializers
from distrec.sharding.table import ITEMS, USERS, TableSpec

if TYPE_CHECKING:
    from distrec.data.dataset import Dataset


class ModelConfig(Part):
    """Base of the configurations of models and solvers; it has the options of the part."""

    ignores: ClassVar[tuple[str, ...]] = ()
    """Sections of the configuration, and dotted keys, that do nothing beside this part."""

    def tables(self) -> tuple[TableSpec, ...]:
        """Return the tables that gradient descent trains, shards and saves."""
        return ()


models: Registry[type[ModelConfig]] = Registry("model")
"""Configurations of models and solvers by name."""


class EmbeddingConfig(ModelConfig):
    """Base of the configurations of models that gradient descent trains."""

    dim: int = Field(64, ge=1)
    """Dimension D of the embeddings."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """Similarity of a user and an item in training; `eval.similarity` is that of the ranking."""
    init: Annotated[Init, OneOf(initializers)] = Field(default_factory=lambda: initializers["normal"]())
    """Initial rows."""
    user_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability of the values of the user's representation in training, with a mask for each pair; under
    cosine of the vector of unit length."""
    user_dropout_before_norm: bool = False
    """Under cosine: scale the user's vector to unit length again after dropout."""
    bfloat16: bool = False
    """Store rows as bfloat16, in half the memory. Arithmetic and optimizer state stay float32."""

    def unused(self) -> set[str]:
        return set() if self.user_dropout and self.similarity == "cosine" else {"user_dropout_before_norm"}

    reads: ClassVar[tuple[Literal["history", "graph"], ...]] = ()
    """Fields of `ModelInputs` that it reads beside rows. A model that reads the graph gets all rows at each step."""
    logits: ClassVar[bool] = False
    """Whether its representations have one more column in training: a logit of the row alone, which is no part of the
    score, and which a loss may read. In evaluation all columns are part of the score."""

    def tables(self) -> tuple[TableSpec, ...]:
        """Return one table of users and one of items, of width `dim`."""
        return (TableSpec(USERS, USERS, self.dim, self.init), TableSpec(ITEMS, ITEMS, self.dim, self.init))

    def build(self) -> "Model":
        """Return the model. Its parameters are drawn from torch's generator, which is seeded alike at all workers."""
        raise NotImplementedError


@dataclass(frozen=True)
class History:
    """Some training items of each user: the H of lowest hash(seed, user, item), H the option `history` of the model."""

    index_UH: Tensor
    """Index into what `fetch` returns, int64, -1 where a user has fewer than H items."""
    fetch: Callable[[Tensor], Tensor]

    def items(self, values_RD: Tensor) -> tuple[Tensor, Tensor]:
        """Return (values of each user's items (U, H, D), 0 where there is none; which there are (U, H)).

        Args:
            values_RD: one row for each of `ModelInputs.items`.
        """
        present_UH = self.index_UH >= 0
        items_UHD = self.fetch(values_RD)[self.index_UH.clamp(min=0)]
        return items_UHD * present_UH[:, :, None], present_UH


@dataclass(frozen=True)
class ModelInputs:
    """What a model reads to represent some users and items."""

    users: dict[str, Tensor]
    """Rows of these users, which this worker owns, by table, (U, D)."""
    items: dict[str, Tensor]
    """Rows of these items, which this worker owns, by table, (R, D). Other workers request most of them."""
    history: History | None = None
    graph: Graph | None = None


class Model(torch.nn.Module):
    """Map from table rows to representations. Parameters of its modules are replicated and trained like the tables.

    A row-wise model implements `users` and `items`. Others implement `encode`; collectives of its inputs must be called
    alike at all workers.
    """

    def users(self, rows_UD: Tensor) -> Tensor:
        """Return representations of users, (U, D), each of its row only."""
        return rows_UD

    def items(self, rows_RD: Tensor) -> Tensor:
        """Return representations of items, (R, D), each of its row only."""
        return rows_RD

    def encode(self, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
        """Return representations of the users, (U, D), and of the items, (R, D), of the inputs."""
        return self.users(inputs.users[USERS]), self.items(inputs.items[ITEMS])

    def encode_rows(self, inputs: ModelInputs, users_U: Tensor, items_R: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return `encode` of some of the users and items of the inputs, by their index among these; None: all items.

        It is called of a model that reads the graph, whose inputs are all rows of this worker. A model that needs less
        time for some than for all implements it.
        """
        users_VD, items_VD = self.encode(inputs)
        return users_VD.index_select(0, users_U), items_VD if items_R is None else items_VD.index_select(0, items_R)


Similarity = Literal["model", "dot", "cosine"]
"""Values of `eval.similarity`."""


class Scorer:
    """The scores that rank items for users. All workers make the same calls in the same order."""

    similarity: Literal["cosine", "dot"] = "dot"
    """Similarity of representations in training."""

    def ranking_similarity(self, chosen: Similarity) -> Literal["dot", "cosine"]:
        """Return the similarity that ranks, given `eval.similarity`."""
        return self.similarity if chosen == "model" else chosen

    def representations(self, users: np.ndarray) -> tuple[Tensor, Tensor] | None:
        """Return representations of some users (U, D), and of all items that this worker owns (V, D).

        None if the scores are not inner products of representations; `scores` then gives them.

        Args:
            users: local indices of users that this worker owns.
        """
        return None

    def scores(self, users: np.ndarray, items: np.ndarray, out_UV: Tensor) -> None:
        """Write the scores of some users with some items.

        Args:
            users: local indices of users that this worker owns; maybe none.
            items: the same items at all workers, ascending.
            out_UV: tile to write to.
        """
        raise NotImplementedError


Emit = Callable[[int, Tensor], None]
"""Receives, after each step of an epoch, the steps done and the sum of this worker's share of losses so far."""


class Learner(Protocol):
    """The training state of one worker. All workers make the same calls in the same order."""

    @property
    def exchange(self) -> Exchange: ...

    @property
    def source(self) -> BatchSource | None:
        """Source of the batches that `train_epoch` reads; None if it reads none."""

    @property
    def scorer(self) -> Scorer:
        """The scores of the present state."""

    def describe(self) -> str:
        """Return how it trains, for the log."""

    def train_epoch(self, epoch: int, first_step: int, batches: Iterator[Batch], emit: Emit) -> float:
        """Train one epoch from a step on. Return the sum over these steps of this worker's share of the loss.

        Args:
            epoch: epoch, from 0.
            first_step: first step.
            batches: batches from this step on, those of later epochs included; one may be read ahead.
            emit: called after each step.
        """

    def observe(self, watched: Sequence[float]) -> None:
        """Receive the watched metric of each evaluation so far: before training, and after each further one."""

    def timing(self) -> dict[str, float]:
        """Return the seconds spent in each part of the steps since the last call."""

    def diagnostics(self) -> dict[str, float]:
        """Return figures of the last step, by name, equal at all workers."""

    def save(self, folder: Path, meta: dict[str, Any]) -> None:
        """Write this worker's part of a checkpoint, and `meta`, which is equal at all workers."""

    def load(self, folder: Path) -> dict[str, Any]:
        """Restore the state from a checkpoint of any number of workers. Return its `meta`."""


class DataSizes(NamedTuple):
    """Sizes of the training data, and the number of workers among which they are divided."""

    users: int
    items: int
    interactions: int
    user_degrees: np.ndarray
    """The numbers of training interactions that occur among users, each at least once."""
    workers: int


class SolverConfig(ModelConfig):
    """Base of the configurations of solvers, which are not trained by gradient descent."""

    ignores = (
        *("loss", "sampling", "optim", "train.batch_size", "train.send_bfloat16"),
        *("train.stream", "train.stream_actors", "train.look_ahead_mib"),
    )
    one_epoch: ClassVar[bool] = False
    """Whether training is done after one epoch, whatever `train.epochs` is."""

    def needed_bytes(self, sizes: DataSizes, first: bool = True) -> dict[str, float]:
        """Return the memory that the first worker, or another one, needs for training, by what it is for.

        By default it is not known: {}.
        """
        return {}

    def learner(self, dataset: "Dataset", seed: int, device: torch.device) -> Learner:
        """Return the learner of one worker."""
        raise NotImplementedError
