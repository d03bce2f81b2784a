"""What to prepare: where the interactions come from, how they are read, and which of them are held out."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from distrec.core.config import Section

PLANTED = "planted"
LEAST_ACTIVITY = 2  # interactions of the least active planted user: one to train on and one that may be held out


class PlantedConfig(Section):
    """The made data set: power-law popularity and activity, low-rank taste."""

    users: int = Field(6040, ge=1)
    """Users. Each has at least 2 interactions."""
    items: int = Field(3700, ge=2)
    """Items in the catalogue; the least popular may go without an interaction."""
    interactions: int = Field(1_000_000, ge=2)
    """Interactions in all parts together, met exactly."""
    rank: int = Field(8, ge=1)
    """Dimension of the taste vectors."""
    popularity_exponent: float = Field(0.8, ge=0)
    """The item of popularity rank r (from 1) has weight r to the minus this. 0: all items alike."""
    activity_exponent: float = Field(0.5, ge=0)
    """The user of activity rank r (from 1) has interactions in proportion to r to the minus this. 0: all alike."""
    taste_strength: float = Field(2.0, ge=0)
    """Standard deviation of the taste term of a user and an item, beside log-popularity. 0: popularity alone."""
    seed: int = 0
    """Seed of the made data."""

    @model_validator(mode="after")
    def _feasible(self) -> Self:
        least, most = LEAST_ACTIVITY * self.users, self.users * self.items
        if not least <= self.interactions <= most:
            raise ValueError(
                f"interactions must lie between {least} (2 a user) and {most} (every pair) for {self.users} users "
                f"and {self.items} items, not {self.interactions}"
            )
        return self


class DataConfig(Section):
    """The data set and its preparation."""

    source: str = PLANTED
    """A folder with train, test or valid files, one file, an already prepared folder, or the word planted (a made data
    set)."""
    test: Path | None = None
    """A separate file with the test part; it replaces one found in the source folder."""
    valid: Path | None = None
    """A separate file with the validation part; it replaces one found in the source folder."""
    format: Literal["auto", "lightgcn", "recbole", "csv", "parquet"] = "auto"
    """Format of every file. auto goes by the file name: .txt is lightgcn, .inter recbole, .csv and .tsv csv, .parquet
    parquet."""
    user_column: str = "user"
    """Name of the user column in CSV and Parquet files. RecBole files name theirs user_id."""
    item_column: str = "item"
    """Name of the item column in CSV and Parquet files. RecBole files name theirs item_id."""
    separator: str = ","
    """The one character between the columns of a .csv file; a .tsv file always has tabs."""
    on_bad_line: Literal["error", "skip"] = "error"
    """A malformed line (wrong number of columns, empty or broken id) is an error, or is left out and counted."""
    test_fraction: float = Field(0, ge=0, lt=1)
    """Share of each user's interactions held out as the test part where the source brings none. For planted data 0
    means 0.2."""
    valid_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of each user's training interactions held out as the validation part where the source brings none."""
    split_seed: int = 0
    """Seed of what is held out."""
    buckets: int = Field(64, ge=1, le=65536)
    """Buckets of users. Chosen once for a data set: it bounds the number of workers and fixes the order of training."""
    cache: Path = Path("runs/prepared")
    """Folder that keeps prepared data sets; equal files and settings are prepared once."""
    planted: PlantedConfig = PlantedConfig()
    """The made data set, where the source is planted."""

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
            raise ValueError("planted data makes its own parts: leave test and valid out, or name another source")
        return self
