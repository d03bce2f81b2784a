"""Configuration of the data: source, format and split."""

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from distrec.core.section import Section, expand_user

PLANTED = "planted"
_TIME_SPLITS = ("leave_last", "time_user", "time_global")
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
    """Source of the interactions: a file; a folder with a train file and, optionally, valid and test files; a folder of
    part files, or a pattern such as 'logs/*.csv', which are read as one; a folder written by distrec prepare; or
    planted, a synthetic data set. Files may be compressed with gzip, zstd or bzip2."""
    test: Path | None = None
    """File, folder of part files or pattern with the test part. Replaces a test file in the source folder."""
    valid: Path | None = None
    """The same for the validation part."""
    format: Literal["auto", "lightgcn", "recbole", "csv", "pairs", "parquet"] = "auto"
    """Format of the files. auto recognises it from the first lines: lightgcn is user item item ... a line; recbole has
    name:type in its header; csv has columns, usually with a header; pairs has columns without a header, user first."""
    header: Literal["auto", True, False] = "auto"
    """Whether the first line names the columns. auto: it does if it has the names of user_column and item_column, or
    text above a column of numbers."""
    columns: str | None = None
    """Names of the columns in their order, such as user,item,rating,timestamp, for files without a header or in place
    of it; - for a column without a name. By default the first two columns are user and item."""
    user_column: str = "user"
    """Name of the user column, or its number from 1. In RecBole files user stands for user_id."""
    item_column: str = "item"
    """The same for the item column."""
    rating_column: str | None = None
    """Name or number of the column that min_rating applies to."""
    min_rating: float | None = None
    """Lowest rating, or label, of an interaction that counts; others are left out. By default all count."""
    separator: str = "auto"
    r"""Separator of columns: any text, such as ; or ::, a blank (which stands for several), or an escape such as \t and
    \x01. auto recognises the usual ones."""
    quoting: Literal["auto", True, False] = "auto"
    """Whether double quotes enclose fields that hold separators or line ends. auto: unless the separator is several
    characters or not printable, or a tab in a RecBole file."""
    null_values: str = ""
    """Text of missing ids beside the empty field, separated by commas, such as NULL,nan. Their lines are malformed."""
    on_bad_line: Literal["error", "skip"] = "error"
    """Malformed lines (wrong number of columns, missing or invalid id, rating or time): error stops at the first, skip
    drops and counts them."""
    split: Literal["random", "leave_one_out", "leave_last", "time_user", "time_global"] = "random"
    """Interactions to hold out for each part that the source does not have: `random`, a share of each user's;
    `leave_one_out`, one of each user's, at random; `leave_last`, each user's last; `time_user`, a share of each user's,
    the last; `time_global`, a share of all, the last."""
    time_column: str | None = None
    """Name or number of the column with the time of each interaction, for the splits by time."""
    test_fraction: float = Field(0, ge=0, lt=1)
    """Share of the interactions to hold out as the test part. For planted data 0 means 0.2."""
    valid_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the training interactions to hold out as the validation part. With leave_one_out and leave_last 0 means
    no validation part, any other value one interaction of each user."""
    split_seed: int = 0
    """Seed of the held-out split."""
    min_user: int = Field(1, ge=1)
    """Fewest interactions of a user: users with fewer are left out, repeatedly with `min_item`, before the split."""
    min_item: int = Field(1, ge=1)
    """Fewest interactions of an item."""
    buckets: int = Field(64, ge=1, le=65536)
    """Number of user buckets, fixed when a data set is prepared: the maximum number of workers. The order of training
    depends on it."""
    cache: Path = Path("runs/prepared")
    """Folder of prepared data sets. Equal files and settings are prepared once."""
    planted: PlantedConfig = PlantedConfig()
    """The synthetic data set, for data.source=planted."""

    def unused(self) -> set[str]:
        return set() if self.source == PLANTED else {"planted"}

    def column_names(self) -> list[str]:
        """Return the names in `columns`."""
        return [name.strip() for name in (self.columns or "").split(",")]

    def nulls(self) -> tuple[str, ...]:
        """Return the texts in `null_values`."""
        return tuple(text.strip() for text in self.null_values.split(",") if text.strip())

    @field_validator("columns", "null_values", mode="before")
    @classmethod
    def _join(cls, value: object) -> object:
        if isinstance(value, str) and value[:1] + value[-1:] == "[]":  # as lists are written elsewhere
            return value[1:-1]
        return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value

    @field_validator("source")
    @classmethod
    def _expand_source(cls, value: str) -> str:
        return str(expand_user(value)) if value.startswith("~") else value

    @field_validator("separator")
    @classmethod
    def _unescaped(cls, value: str) -> str:
        text = re.sub(r"\\x([0-7][0-9a-fA-F])", lambda code: chr(int(code[1], 16)), value).replace(r"\t", "\t")
        if not text or set(text) & set('"\r\n\0'):
            raise ValueError(f"a separator is text without quotes, line ends and NUL, not {value!r}")
        return text

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.user_column == self.item_column:
            raise ValueError(f"user_column and item_column are both {self.user_column!r}")
        if (self.rating_column is None) != (self.min_rating is None):
            raise ValueError("rating_column and min_rating go together: set both, as rating_column=stars min_rating=4")
        if self.source == PLANTED and (self.test or self.valid):
            raise ValueError("planted data has its own parts: leave test and valid out, or set another source")
        self._check_split()
        return self

    def _check_split(self) -> None:
        by_time = self.split in _TIME_SPLITS
        if by_time and self.source == PLANTED:
            raise ValueError(f"split={self.split}: planted interactions have no times; use random or leave_one_out")
        if by_time and self.time_column is None:
            raise ValueError(
                f"split={self.split} needs the times of the interactions: set time_column to the column that has them"
            )
        if self.time_column is not None and not by_time:
            raise ValueError(
                f"time_column does nothing with split={self.split}: set split to {', '.join(_TIME_SPLITS)}"
            )
        if self.split in ("leave_one_out", "leave_last"):
            default = type(self).model_fields["valid_fraction"].default
            if self.test_fraction or self.valid_fraction not in (0, default):
                raise ValueError(
                    f"split={self.split} holds out one interaction of each user: leave test_fraction and "
                    "valid_fraction out (valid_fraction=0: no validation part)"
                )
