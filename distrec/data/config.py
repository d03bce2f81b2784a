"""Configuration of the data: source, format and split."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from distrec.core.config import Section

PLANTED = "planted"
MIN_ACTIVITY = 2  # interactions of the least active planted user: one to train on, one that may be held out


class PlantedConfig(Section):
    """Synthetic data set with power-law popularity and activity and low-rank taste."""

    users: int = Field(6040, ge=1)
    """Number of users. Each has at least 2 interactions."""
    items: int = Field(3700, ge=2)
    """Number of items in the catalogue. Some of the least popular may have no interaction."""
    interactions: int = Field(1_000_000, ge=2)
    """Exact number of interactions, all parts together."""
    rank: int = Field(8, ge=1)
    """Dimension of the taste vectors."""
    popularity_exponent: float = Field(0.8, ge=0)
    """Power-law exponent of item popularity: the r-th most popular item has weight r^-exponent. 0: all items equal."""
    activity_exponent: float = Field(0.5, ge=0)
    """Power-law exponent of user activity: the r-th most active user has interactions in proportion to r^-exponent. 0:
    all users equal."""
    taste_strength: float = Field(2.0, ge=0)
    """Standard deviation of the taste term, which is added to log-popularity. 0: popularity alone."""
    seed: int = 0
    """Seed of the synthetic data."""

    @model_validator(mode="after")
    def _feasible(self) -> Self:
        least, most = MIN_ACTIVITY * self.users, self.users * self.items
        if not least <= self.interactions <= most:
            raise ValueError(
                f"interactions must lie between {least} (2 a user) and {most} (every pair) for {self.users} users "
                f"and {self.items} items, not {self.interactions}"
            )
        return self


class DataConfig(Section):
    """The data set: where it is, how to read it, how to split it."""

    source: str = PLANTED
    """Source of the interactions: a folder with a train file and, optionally, valid and test files; a single file; a
    folder written by distrec prepare; or planted, a synthetic data set."""
    test: Path | None = None
    """File with the test part. Replaces a test file in the source folder."""
    valid: Path | None = None
    """File with the validation part. Replaces a valid file in the source folder."""
    format: Literal["auto", "lightgcn", "recbole", "csv", "parquet"] = "auto"
    """Format of the files. auto goes by the suffix (.txt: lightgcn, .inter: recbole, .csv and .tsv: csv, .parquet:
    parquet)."""
    user_column: str = "user"
    """Name of the user column in CSV and Parquet files. RecBole files always use user_id."""
    item_column: str = "item"
    """Name of the item column in CSV and Parquet files. RecBole files always use item_id."""
    separator: str = ","
    """Column separator of CSV files, one character. Files named .tsv are always separated by tabs."""
    on_bad_line: Literal["error", "skip"] = "error"
    """Malformed lines (wrong number of columns, empty or invalid id): error stops at the first, skip drops and counts
    them."""
    test_fraction: float = Field(0, ge=0, lt=1)
    """Share of each user's interactions to hold out as the test part, if the source has none. For planted data 0 means
    0.2."""
    valid_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of each user's training interactions to hold out as the validation part, if the source has none."""
    split_seed: int = 0
    """Seed of the held-out split."""
    buckets: int = Field(64, ge=1, le=65536)
    """Number of user buckets, fixed when a data set is prepared: the maximum number of workers. The order of training
    depends on it."""
    cache: Path = Path("runs/prepared")
    """Folder of prepared data sets. Equal files and settings are prepared once."""
    planted: PlantedConfig = PlantedConfig()
    """The synthetic data set, for data.source=planted."""

    def unused(self) -> set[str]:
        return set() if self.source == PLANTED else {"planted"}

    @field_validator("separator")
    @classmethod
    def _one_character(cls, value: str) -> str:
        if len(value) != 1 or not value.isascii() or value in '"\r\n':
            raise ValueError(f"a separator is one ASCII character, neither a quote nor a line end, not {value!r}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.user_column == self.item_column:
            raise ValueError(f"user_column and item_column are both {self.user_column!r}")
        if self.source == PLANTED and (self.test or self.valid):
            raise ValueError("planted data has its own parts: leave test and valid out, or set another source")
        return self
