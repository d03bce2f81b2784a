"""Initial rows: a function of (seed, table, bucket, row) that does not depend on the number of workers."""

import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from distrec.core.errors import UserError
from distrec.core.randomness import Purpose, generator
from distrec.core.registry import Registry
from distrec.core.section import Part
from distrec.sharding.partition import Partition


class Init(Part):
    """A distribution of initial rows. A subclass implements `draw`."""

    reads_degrees: ClassVar[bool] = False
    """Whether `rows` needs the degrees of the rows."""

    def rows(
        self, seed: int, table: str, partition: Partition, worker: int, width: int, degree_V: np.ndarray | None = None
    ) -> Tensor:
        """Return a worker's shard of the initial rows of a table, (V_local, width) float32.

        Each bucket has a stream of its own, so that a worker draws only the rows it owns.

        Args:
            seed: seed of the run.
            table: name of the table.
            partition: partition of its rows.
            worker: the worker.
            width: columns of a row.
            degree_V: training interactions of each of the shard's rows, for an initialisation that reads them.
        """
        rows_VD = np.empty((partition.size(worker), width), np.float32)
        owned = partition.owned_buckets(worker)

        def fill(k: int) -> None:
            rows_of_bucket = rows_VD[k :: len(owned)]  # consecutive rows of a shard lie in consecutive buckets
            draws = generator(seed, Purpose.INIT, zlib.crc32(table.encode()), owned[k])
            rows_of_bucket[:] = self.draw(draws, rows_of_bucket.shape, partition.rows)

        with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # numpy draws without the interpreter lock
            list(threads.map(fill, range(len(owned))))
        return torch.from_numpy(rows_VD)

    def draw(self, draws: np.random.Generator, shape: tuple[int, int], table_rows: int) -> np.ndarray:
        """Return rows of one bucket, float32, of a table with `table_rows` rows in all its buckets.

        Args:
            draws: the stream of the bucket.
            shape: (rows, width).
            table_rows: rows V of the whole table.
        """
        raise NotImplementedError


_REDRAWS = 100  # of rows of zeros, which have no direction

initializers: Registry[type[Init]] = Registry("initialisation")


@initializers.register("normal")
class Normal(Init):
    """Normal distribution with mean 0."""

    std: float = Field(0.01, gt=0)
    """Standard deviation."""

    def draw(self, draws: np.random.Generator, shape: tuple[int, int], table_rows: int) -> np.ndarray:
        return draws.standard_normal(shape, np.float32) * np.float32(self.std)


@initializers.register("xavier_uniform")
class XavierUniform(Init):
    """Uniform distribution on [-a, a), a = sqrt(6 / (V + D)), V rows of the whole table (Glorot and Bengio, 2010)."""

    def draw(self, draws: np.random.Generator, shape: tuple[int, int], table_rows: int) -> np.ndarray:
        bound = np.sqrt(6 / (table_rows + shape[1]))
        return (2 * draws.random(shape, np.float32) - 1) * np.float32(bound)


@initializers.register("xavier_normal")
class XavierNormal(Init):
    """Normal distribution with standard deviation sqrt(2 / (V + D)), V rows of the whole table (Glorot and Bengio,
    2010)."""

    def draw(self, draws: np.random.Generator, shape: tuple[int, int], table_rows: int) -> np.ndarray:
        return draws.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / (table_rows + shape[1])))


@initializers.register("prism")
class Prism(Init):
    """Directions of another initialisation with the norm alpha ln(d + 2) + 1 - alpha, d the row's training interactions
    (PRISM paper, Eq. 4): rows start with the norms that decay of all rows would give them."""

    alpha: float = Field(1.0, ge=0, le=3)
    """Weight alpha of popularity: 0 gives rows of unit length; at alpha above 3.26 a row without interactions would
    have a negative norm."""
    base: str = "xavier_uniform"
    """Initialisation that the directions are drawn from."""

    reads_degrees = True

    @field_validator("base")
    @classmethod
    def _other(cls, base: str) -> str:
        if base not in initializers or base == "prism":
            raise ValueError(f"{base!r} is not a base; known: {', '.join(sorted({*initializers} - {'prism'}))}")
        return base

    def rows(
        self, seed: int, table: str, partition: Partition, worker: int, width: int, degree_V: np.ndarray | None = None
    ) -> Tensor:
        assert degree_V is not None and len(degree_V) == partition.size(worker), "degrees of the shard's rows"
        norm_V = self.alpha * np.log(np.asarray(degree_V, np.float64) + 2) + 1 - self.alpha
        directions_VD = super().rows(seed, table, partition, worker, width)
        return directions_VD * torch.from_numpy(norm_V.astype(np.float32))[:, None]

    def draw(self, draws: np.random.Generator, shape: tuple[int, int], table_rows: int) -> np.ndarray:
        base = initializers[self.base]()
        rows_VD = base.draw(draws, shape, table_rows).astype(np.float64)
        for _ in range(_REDRAWS):
            (zero,) = np.nonzero(~rows_VD.any(1))
            if not len(zero):
                unit_VD: np.ndarray = rows_VD / np.linalg.norm(rows_VD, axis=1, keepdims=True)
                return unit_VD.astype(np.float32)
            rows_VD[zero] = base.draw(draws, (len(zero), shape[1]), table_rows)
        raise UserError(f"model.init.base={self.base} draws rows of zeros, which have no direction")
