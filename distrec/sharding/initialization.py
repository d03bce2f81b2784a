"""Initial rows: a function of (seed, table, bucket, row) that does not depend on the number of workers."""

import zlib

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from distrec.core.config import Part
from distrec.core.randomness import Purpose, generator
from distrec.core.registry import Registry
from distrec.sharding.partition import Partition


class Init(Part):
    """A distribution of initial rows. A subclass implements `draw`."""

    def rows(self, seed: int, table: str, partition: Partition, worker: int, width: int) -> Tensor:
        """Return a worker's shard of the initial rows of a table, (V_local, width) float32.

        Each bucket has a stream of its own, so that a worker draws only the rows it owns.
        """
        rows_VD = np.empty((partition.size(worker), width), np.float32)
        owned = partition.owned_buckets(worker)
        for k, bucket in enumerate(owned):
            rows_of_bucket = rows_VD[k :: len(owned)]  # consecutive rows of a shard lie in consecutive buckets
            draws = generator(seed, Purpose.INIT, zlib.crc32(table.encode()), bucket)
            rows_of_bucket[:] = self.draw(draws, rows_of_bucket.shape, partition.rows)
        return torch.from_numpy(rows_VD)

    def draw(self, draws: np.random.Generator, shape: tuple[int, int], table_rows: int) -> np.ndarray:
        """Return rows of one bucket, float32, of a table with `table_rows` rows in all its buckets.

        Args:
            draws: the stream of the bucket.
            shape: (rows, width).
            table_rows: rows V of the whole table.
        """
        raise NotImplementedError


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
