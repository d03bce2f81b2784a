"""Which training steps stay on a GPU, and what they read there. docs/gpu.md has the table."""

import torch

from distrec.kernels.dispatch import missing_triton
from distrec.losses.exact_softmax import Softmax
from distrec.models.base import EmbeddingConfig
from distrec.optim.rules import RULES
from distrec.optim.sparse import moves_all_rows
from distrec.sharding.table import ITEMS, USERS
from distrec.training.config import Config

_SMALL, _DENSE = 100_000, 8  # rows, and rows for each that the step uses, up to which a table is read whole
_SWEPT_ROWS = 4_000_000  # of a table, up to which a step updates all of them with `optim.idle=sweep`
_SWEPT_VALUES = 2**27  # of a worker, up to which it does so by default: more take longer than to launch from the host


def prevented(
    config: Config, users: int, items: int, device: torch.device, workers: int, installed: bool = False
) -> str | None:
    """Return why steps cannot stay on the device; None if they can.

    Args:
        config: configuration of the run.
        users: rows of the users' tables.
        items: rows of the items' tables.
        device: where the tables are.
        workers: number of workers.
        installed: take it that Triton is installed there: a plan is made on another machine.
    """
    model = config.model
    if not isinstance(model, EmbeddingConfig):
        return "a solver takes no steps"
    if device.type != "cuda" and config.optim.kernels != "triton":  # Triton's interpreter, in tests
        return "the tables are on the CPU"
    if not config.train.capture:
        return "train.capture=false"
    if not installed and (reason := missing_triton()):
        return f"steps on the GPU need {reason}"
    with torch.device("meta"):
        layers = any(True for _ in model.build().parameters())
    if layers or "history" in model.reads:
        return f"model {model.name} has layers, or reads histories"
    if config.train.send_bfloat16:
        return "train.send_bfloat16"
    if model.user_dropout:
        return "masks of dropout are drawn on the host"
    if any(spec.bounds for spec in config.table_specs):
        return f"loss {config.loss.name} bounds the rows of a table"
    if config.optim.kernels not in ("auto", "triton"):
        return f"optim.kernels={config.optim.kernels}"
    if config.optim.decay.scope == "occurrences":
        return "occurrences are counted on the host"
    if reason := _not_swept(config, {USERS: users, ITEMS: items}, workers):
        return reason
    if workers > 1 and (reason := _not_gathered(config, items, workers)):
        return f"{reason}, and there are {workers} workers"
    return None


def _not_swept(config: Config, rows: dict[str, int], workers: int) -> str | None:
    """Return why a step on the device cannot update all rows that move; None if it can, or need not."""
    swept = [entity for entity in rows if sweeps(config, entity)]
    if not swept:
        return None
    what = f"rule {config.optim.rule}" if RULES[config.optim.rule].moves_idle else "full l2 decay"
    if config.optim.idle == "sweep":
        most = max(rows[entity] for entity in swept)
        return f"{what} moves all {most:,} rows" if most > _SWEPT_ROWS else None
    assert isinstance(config.model, EmbeddingConfig), config.model
    if config.model.bfloat16:  # to round rows at each step adds more noise than to round them when they are read
        return f"{what} moves all rows, which are bfloat16, and optim.idle=lazy"
    values = sum(config.width(entity) * rows[entity] // workers for entity in swept)
    return f"{what} moves all rows, {values:,} values, and optim.idle=lazy" if values > _SWEPT_VALUES else None


def _not_gathered(config: Config, items: int, workers: int) -> str | None:
    """Return why a worker cannot take its part of a step with the items of all workers; None if it can."""
    assert isinstance(config.model, EmbeddingConfig), config.model
    if "graph" in config.model.reads:
        return f"model {config.model.name} reads the graph"
    if "batch" in config.loss.needs():
        return f"loss {config.loss.name} reads the whole batch"
    if "catalogue" in config.loss.needs() and not isinstance(config.loss, Softmax):
        return f"loss {config.loss.name} reads a catalogue that the workers hold together"
    if config.effective_sampling.distribution == "in_batch":
        return "negatives are the positives of the whole batch"
    if config.optim.clip_norm is not None:
        return "optim.clip_norm reads the gradients of all workers"
    if items > max(_SMALL, item_uses(config) // workers):
        return f"{items:,} items are too many to send at each step"
    return None


def draws_of(config: Config) -> int:
    """Return the items that a step uses as negatives."""
    sampling, pairs = config.effective_sampling, config.train.batch_size
    if sampling.distribution == "in_batch":
        return pairs
    return sampling.negatives * (1 if sampling.shared else pairs)


def item_uses(config: Config) -> int:
    """Return the items that a step uses, repeats counted."""
    return config.train.batch_size * (1 + config.batch_needs.extra_positives) + draws_of(config)


def _moving(config: Config, entity: str) -> list[bool]:
    """Return of each table of an entity whether a step moves rows outside the batch, by more than a common factor."""
    specs = [spec for spec in config.table_specs if spec.entity == entity]
    return [moves_all_rows(config.optim, config.optim.decay.strength_of(spec.name, spec.decay)) for spec in specs]


def sweeps(config: Config, entity: str) -> bool:
    """Return whether a step that stays on the device updates all rows of some table of users or of items.

    It does so whatever `optim.idle` is: up to some million rows that takes less time than to launch from the host what
    finds out which steps each row has missed. A model that reads the graph has all rows in its batch.
    """
    assert isinstance(config.model, EmbeddingConfig), config.model
    return "graph" not in config.model.reads and any(_moving(config, entity))


def reads_all(config: Config, entity: str, workers: int) -> bool:
    """Return whether such a step reads all rows of users or of items, whatever their number."""
    assert isinstance(config.model, EmbeddingConfig), config.model
    of_items = entity == ITEMS and (workers > 1 or "catalogue" in config.loss.needs())
    return "graph" in config.model.reads or sweeps(config, entity) or of_items


def all_in_batch(config: Config, entity: str) -> bool:
    """Return whether all rows of users or of items count as rows of the batch.

    Those of tables that are swept do, unless some of the tables are not, or only what is really in the batch decays.
    """
    assert isinstance(config.model, EmbeddingConfig), config.model
    of_items = entity == ITEMS and "catalogue" in config.loss.needs()
    swept = all(_moving(config, entity)) and config.optim.decay.scope != "in_batch"
    return "graph" in config.model.reads or swept or of_items


def rows_read(rows: int, uses: int) -> int:
    """Return how many rows of a table a step reads that uses so many, repeats counted."""
    return rows if rows <= max(_SMALL, _DENSE * uses) else uses
