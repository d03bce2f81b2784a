"""The metrics of every user: gathered from the workers, written to a file, resampled for intervals."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from distrec.core.atomic_file import atomic_file
from distrec.core.errors import UserError, reason_of
from distrec.sharding.collectives import Exchange

MOST_USERS = 2**21  # of whom values are gathered: each worker then holds some 16 MiB for each metric
_SEED, _PERCENTILES = 0, (2.5, 97.5)


@dataclass(frozen=True)
class PerUser:
    """Metrics of the evaluated users of all workers, by ascending index."""

    user_U: np.ndarray
    """Indices of the users."""
    values: Mapping[str, np.ndarray]
    """Values by name, (U,) float64."""

    def write(self, path: Path, user_ids: pa.Array) -> Path:
        """Write a Parquet file with the column `user`, the users' own ids, and one column for each metric.

        Raises:
            UserError: the file cannot be written.
        """
        table = pa.table({"user": user_ids.take(pa.array(self.user_U)), **self.values})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as partial:
                pq.write_table(table, partial)
            return path
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"cannot write {path}: {reason_of(error)}") from None


def gather_users(user_U: np.ndarray, values: Mapping[str, np.ndarray], exchange: Exchange) -> PerUser:
    """Return the values of the users of all workers. Collective.

    Args:
        user_U: indices of this worker's users.
        values: their values by name, the same names at all workers.
        exchange: the group of workers.
    """
    # float64 holds indices up to 2^53 exactly.
    own_UC = torch.from_numpy(np.stack([user_U.astype(np.float64), *values.values()], 1)).to(exchange.device)
    all_UC = exchange.gather(own_UC)[0].cpu().numpy()
    all_UC = all_UC[np.argsort(all_UC[:, 0])]
    return PerUser(all_UC[:, 0].astype(np.int64), dict(zip(values, all_UC[:, 1:].T.copy(), strict=True)))


def bootstrap(values: Mapping[str, np.ndarray], samples: int) -> dict[str, float]:
    """Return bounds `name/low` and `name/high` of the 95 % percentile intervals of the means over users.

    Users are drawn with replacement; the draws depend on the number of users only.

    Args:
        values: values of the users by name, (U,) each; NaN where a user does not count.
        samples: number of resamples.
    """
    value_UC = np.stack([*values.values()], 1)
    counted_UC, users = ~np.isnan(value_UC), len(value_UC)
    both_UC, draws = np.concatenate([np.where(counted_UC, value_UC, 0.0), counted_UC], 1), np.random.default_rng(_SEED)
    means_SC = np.full((samples, len(values)), np.nan)
    for mean_C in means_SC:
        # The number of times that each user is drawn, so that a resample is one product and no copy of the values.
        times_U = np.bincount(draws.integers(users, size=users), minlength=users)
        total_C, count_C = np.split(times_U.astype(np.float64) @ both_UC, 2)
        np.divide(total_C, count_C, out=mean_C, where=count_C > 0)
    low_C, high_C = np.nanpercentile(means_SC, _PERCENTILES, axis=0)
    bounds: dict[str, float] = {}
    for name, low, high in zip(values, low_C, high_C, strict=True):
        bounds |= {f"{name}/low": float(low), f"{name}/high": float(high)}
    return bounds
