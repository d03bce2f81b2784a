"""Bytes that a worker sends in a training step, by collective. It receives as many, in expectation."""

from collections.abc import Iterator
from typing import NamedTuple

from distrec.models.base import EmbeddingConfig
from distrec.sharding.table import ITEMS
from distrec.training.config import Config
from distrec.training.planning.sizes import Sizes, StepSizes, graph_columns
from distrec.training.planning.worker_memory import TILE_SCORES, on_device, parameters

_F32, _INT32, _INT64 = 4, 4, 8


class Collective(NamedTuple):
    """The calls of a step that serve one purpose."""

    name: str
    calls: float
    bytes: float
    """Bytes that a worker sends to others."""
    ahead: bool = False
    """Whether they run in a thread during the step before."""


def step_traffic(config: Config, sizes: Sizes, workers: int, step: StepSizes, gpu: bool = False) -> list[Collective]:
    """Return the collectives of a step; none with one worker. `gpu`: whether the workers run on GPUs."""
    if workers == 1:
        return []
    stays = on_device(config, sizes, workers, gpu)
    return list(_gathered_items(config, sizes, workers) if stays else _collectives(config, sizes, workers, step))


def _gathered_items(config: Config, sizes: Sizes, workers: int) -> Iterator[Collective]:
    width = config.width(ITEMS)
    largest, away = sizes.partition(ITEMS, workers).size(0), (workers - 1) / workers
    yield Collective("items, to all workers", 1, _F32 * width * largest * (workers - 1))
    yield Collective("gradients of items", 1, _F32 * (width + 1) * sizes.items * away)  # 1: which are used


def _collectives(config: Config, sizes: Sizes, workers: int, step: StepSizes) -> Iterator[Collective]:
    model, reads = config.model, config.loss.needs()
    assert isinstance(model, EmbeddingConfig), model
    others, away = workers - 1, (workers - 1) / workers  # share of the rows that other workers own
    rounded = 2 if config.train.send_bfloat16 else _F32
    width = config.width(ITEMS)
    width += (model.dim if "positive_rows_BD" in reads else 0) + (config.optim.decay.scope == "occurrences")
    if step.items:
        ids = others * workers * _INT64 + _INT32 * step.items * away
        yield Collective("row ids", 2, ids, ahead=True)
        if config.batch_needs.history:  # values, and keys of attention, are fetched beside the representations
            width += model.dim * (1 if getattr(model, "pooling", "mean") == "mean" else 2)
        fetches = 2 if config.batch_needs.history else 1
        yield Collective("item rows", fetches, rounded * width * step.items * away)
        yield Collective("gradients of rows", fetches, _F32 * width * step.items * away)
    if step.edges:
        layers = getattr(model, "layers", 1)
        moved = (4 * layers * model.dim + 1) * graph_columns(sizes, workers) * away * _F32  # 1: which rows are read
        yield Collective("layers of the graph", 4 * layers + 1, moved)
    if {"batch", "catalogue"} & set(reads):
        users, row = step.pairs, model.dim * _F32
        tables = 2 if "batch" in reads else 1  # users, and their positives
        yield Collective("gathered pairs", 2 + 2 * tables, others * users * (3 * _INT64 + tables * row))
        yield Collective("gradients of gathered pairs", tables, others * tables * step.batch * row)
    if "batch" in reads:
        yield Collective("sums of uniformities", 4, others * 4 * _F32)
    if "catalogue" in reads:
        tiles = -(-step.shared_scores // TILE_SCORES)
        yield Collective("softmax: maxima and sums", 1 + 2 * tiles, others * 3 * _F32 * step.batch)
    if dense := parameters(config):
        yield Collective("gradients of layers", 1, others * dense * _F32)
    if config.optim.clip_norm is not None:
        yield Collective("norm of the gradient", 1, others * 8)
