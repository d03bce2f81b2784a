"""Memory of one worker, by what it is for, before anything is allocated.

Tables, optimizer state and deferred updates are exact. What steps and evaluations hold follows from the expected sizes
of a step; it stays with the process after them, as their buffers are reused (`core.buffer_pool`), so the sum of the
parts is the peak.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from distrec.models.base import DataSizes, EmbeddingConfig, SolverConfig
from distrec.optim.deferred import DeferredUpdate, StepCoefficients
from distrec.optim.sparse import SparseOptimizer
from distrec.sharding.table import ITEMS, USERS, Table, TableSpec
from distrec.training.config import Config
from distrec.training.device_conditions import draws_of, item_uses, prevented, reads_all, rows_read
from distrec.training.planning.sizes import Sizes, StepSizes, graph_columns, step_sizes

MIB = 2**20
# Measured on x86-64 Linux, Python 3.11, torch 2.13 for CPUs (benchmarks/README.md).
_IMPORTS = {"worker": 500 * MIB, "stream": 300 * MIB, "machine": 1000 * MIB}
_CUDA_CONTEXT = 500 * MIB
_RAY_BLOCKS, _THREAD_BLOCKS = 3 * 32 * MIB, 5 * MIB  # of a stream, beside its look-ahead; largest queue of a thread
_F32 = 4

TILE_SCORES = 2**25
"""Scores that the exact softmax holds at a time: `losses.exact_softmax`."""
RANKED_SCORES = 2**27
"""Scores that a GPU ranks at a time: `evaluation.ranking`."""
GPU_ACTORS = 8
"""Largest default of `train.stream_actors` for a worker on a GPU,"""
PAIR_ACTORS = 2
"""and where negatives are drawn on the GPU."""

Location = Literal["device", "host", "stream", "machine"]
"""`device`: where the tables are, the memory of the worker's process on a CPU; `host`: its process; `stream`: a process
that draws its batches; `machine`: once a machine."""


class Part(NamedTuple):
    """Memory of one worker that serves one purpose."""

    name: str
    bytes: float
    location: Location = "device"
    certain: bool = False
    """Whether it is allocated in any case: the others are estimates."""
    baseline: bool = False
    """Whether a run on the smallest data needs it too."""


def worker_memory(config: Config, sizes: Sizes, workers: int, gpu: bool, first: bool = True) -> list[Part]:
    """Return the parts of the memory of a worker.

    Args:
        config: configuration of the run; `workers` stands for its own number.
        sizes: sizes of the data.
        workers: number of workers W.
        gpu: whether the workers run on GPUs.
        first: whether it is the first worker: of the others none needs more than it.
    """
    parts = [Part("imports of a worker", _IMPORTS["worker"], "host", baseline=True)]
    parts += [Part("CUDA context", _CUDA_CONTEXT, baseline=True)] if gpu else []
    if isinstance(config.model, SolverConfig):
        parts += _solver(config.model, sizes, workers, first)
    else:
        step = step_sizes(config, sizes, workers)
        draws_on_device = on_device(config, sizes, workers, gpu)
        parts += _tables(config, sizes, workers, step.steps, draws_on_device)
        parts += _device_step(config, sizes, workers, step) if draws_on_device else _step(config, sizes, workers, step)
        parts += _stream(config, sizes, workers, gpu, draws_on_device)
    parts.append(Part("evaluation", _evaluation(config, sizes, workers) + gpu * _ranking_tile(sizes)))
    parts.append(Part("its interactions", _evaluated_pairs(sizes, workers), "host"))
    return [*parts, Part("Ray, the driver, MLflow", _IMPORTS["machine"], "machine", baseline=True)]


def total_bytes(parts: list[Part], *locations: Location, certain: bool = False) -> float:
    """Return the sum of the parts at some locations, or of those among them that are certain."""
    return sum(part.bytes for part in parts if part.location in locations and (part.certain or not certain))


def _solver(model: SolverConfig, sizes: Sizes, workers: int, first: bool) -> list[Part]:
    degrees = sizes.user_degrees.degree_C
    counts = DataSizes(sizes.users, sizes.items, sizes.interactions, degrees, workers)
    return [Part(name, needed, certain=True) for name, needed in model.needed_bytes(counts, first).items()]


def optimizer_bytes(
    config: Config, sizes: Sizes, workers: int, spec: TableSpec, steps: int, on_gpu: bool = False
) -> tuple[int, int, int]:
    """Return the bytes of a table's shard at the first worker, of its optimizer state, and of its deferred updates.

    `on_gpu`: whether steps stay there.

    The optimizer itself is made, on the meta device, which allocates nothing.
    """
    model = config.model
    assert isinstance(model, EmbeddingConfig), model
    partition, dtype = sizes.partition(spec.entity, workers), torch.bfloat16 if model.bfloat16 else torch.float32
    rows_VD = torch.empty(partition.size(0), spec.width, dtype=dtype, device="meta")
    table = Table(spec.name, partition, 0, rows_VD, spec.decay, spec.bounds)
    settings = config.optim.model_copy(update={"kernels": "reference"})
    optimizer = SparseOptimizer(table, settings, steps * config.epochs, all_rows="graph" in model.reads, ahead=on_gpu)
    slots = [value for value in optimizer.state().values() if isinstance(value, Tensor)]
    deferred = table.deferred
    pending = _deferred_bytes(deferred, slots, steps) if isinstance(deferred, DeferredUpdate) else 0
    return rows_VD.nbytes, sum(slot.nbytes for slot in slots), pending


def _deferred_bytes(deferred: DeferredUpdate, slots: list[Tensor], steps: int) -> int:
    """Return the bytes of what deferred updates hold beside accumulators: per row, and per step of an epoch."""
    total, shared = 0, {id(slot) for slot in slots}
    for value in vars(deferred).values():
        if isinstance(value, Tensor) and id(value) not in shared:
            total += value.nbytes
        if isinstance(value, StepCoefficients):  # flushed after an epoch at the latest
            coefficients, reserved = value.values_CS.shape
            total += 8 * coefficients * max(reserved, 2 ** int(steps).bit_length())
    return total


def _tables(config: Config, sizes: Sizes, workers: int, steps: int, on_gpu: bool) -> list[Part]:
    found = np.sum([optimizer_bytes(config, sizes, workers, spec, steps, on_gpu) for spec in config.table_specs], 0)
    dense = parameters(config) * _F32
    names = "tables", "optimizer state", "deferred updates"
    parts = [Part(name, float(value), certain=True) for name, value in zip(names, found, strict=True)]
    return [*parts, Part("layers, their state and gradients", 4.0 * dense * (1 + workers / 4))] if dense else parts


def parameters(config: Config) -> int:
    """Return the number of values of the model's layers, which every worker holds."""
    assert isinstance(config.model, EmbeddingConfig), config.model
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in config.model.build().parameters())


def on_device(config: Config, sizes: Sizes, workers: int, gpu: bool) -> bool:
    """Return whether steps stay on the GPU, which also draws."""
    if not gpu:
        return False
    return prevented(config, sizes.users, sizes.items, torch.device("cuda"), workers, installed=True) is None


def actors_of(config: Config, gpu: bool, draws_on_device: bool) -> int:
    """Return the processes of Ray Data that draw for each worker, where cores are free for them."""
    most = PAIR_ACTORS if draws_on_device else GPU_ACTORS
    return config.train.stream_actors or (most if gpu else 1)


def _step(config: Config, sizes: Sizes, workers: int, step: StepSizes) -> list[Part]:
    """Return the memory of a step's arrays, and that of the exchange of rows."""
    model = config.model
    assert isinstance(model, EmbeddingConfig), model
    widths = {entity: config.width(entity) for entity in (USERS, ITEMS)}
    # Rows, representations, and the gradients of both; networks hold their activations beside them.
    copies = (4 if model.similarity == "cosine" else 2) + 2 * bool(parameters(config)) + bool(model.bfloat16) / 2
    rows = copies * (step.users * widths[USERS] + step.items_read * widths[ITEMS]) * _F32
    # A score has an index if it is the pair's own, and scores, numerators, gradients, and a mask with the masked copy.
    scores = 17 * step.own_scores + (13 + 5 * config.effective_sampling.reject) * step.shared_scores
    if "catalogue" in config.loss.needs():
        scores = 5 * min(step.shared_scores, TILE_SCORES)
    pairs = 4 * step.pairs * model.dim * _F32 if step.shared_scores else 24 * step.pairs
    history = 3 * step.users * config.batch_needs.history * model.dim * _F32
    parts = [Part("a step", rows + scores + pairs + history)]
    if step.edges:
        columns = graph_columns(sizes, workers)
        parts.append(Part("graph", 16 * step.edges + 3 * columns * model.dim * _F32, certain=True))
    if workers > 1:
        # Received rows and their gradients; rows sent to others, and the gradients received of them.
        moved = 4 * step.items * widths[ITEMS] * _F32 if step.items else 0.0
        moved += (
            2 * (2 + workers) * step.batch * model.dim * _F32 if {"batch", "catalogue"} & {*config.loss.needs()} else 0
        )
        plan = 2 * (24 * step.items + (8 + 4 * workers) * step.items_read)
        parts.append(Part("exchange: rows, gradients, look-up plans", moved + plan))
    return parts


def device_rows(config: Config, sizes: Sizes, workers: int) -> dict[str, int]:
    """Return the rows of users and items that a worker's part of a step reads which stays on a GPU."""
    rows = {USERS: sizes.partition(USERS, workers).size(0), ITEMS: sizes.items}
    uses = {USERS: -(-config.train.batch_size // workers), ITEMS: item_uses(config)}
    return {k: rows[k] if reads_all(config, k, workers) else rows_read(rows[k], uses[k]) for k in rows}


def _device_step(config: Config, sizes: Sizes, workers: int, step: StepSizes) -> list[Part]:
    """Return the memory of a step that stays on a GPU, and of what it draws from there.

    Rows are read whole, or in lists that hold all uses. Graphs share the memory of their steps, which torch keeps apart
    from that of the first step of a size, which is launched.
    """
    model, sampling, rows_of = config.model, config.effective_sampling, device_rows(config, sizes, workers)
    assert isinstance(model, EmbeddingConfig), model
    pairs, drawn = config.train.batch_size / workers, draws_of(config)
    width = sum(config.width(entity) * rows for entity, rows in rows_of.items())
    # Rows times their scale, representations, and the gradients of both; the list itself.
    rows = (4 if model.similarity == "cosine" else 2) * width * _F32 + 8 * sum(rows_of.values())
    # Of own negatives index, order and rank, scores, gradients; of shared ones scores, sums, gradients and masks.
    scores = 24 * step.own_scores + 18 * step.shared_scores
    if "catalogue" in config.loss.needs():
        scores = 16 * min(step.shared_scores, TILE_SCORES)
    sent = 2 * 16 * min(64, step.steps) * pairs  # pairs of steps, and their copy
    found = [Part("a step", 2.0 * (rows + scores) + sent)]
    if workers > 1:  # the items of all workers; gradients with a column of uses, sent and received, and their sums
        columns = config.width(ITEMS)
        own = sizes.owned(ITEMS, workers) * (2 * columns + 1)
        found.append(Part("exchange: items and gradients", _F32 * (sizes.items * (3 * columns + 2) + own)))
    uniform = sampling.distribution == "uniform"
    masses = 0 if uniform else 32 * sizes.items
    interactions, users = sizes.interactions / workers, sizes.owned(USERS, workers)
    excluded = interactions * (4 if uniform else 16) + 16 * users if sampling.reject and drawn else 0
    listed = sampling.reject and sampling.shared and drawn or config.batch_needs.extra_positives
    lists = 4 * interactions + 8 * users if listed else 0
    found.append(Part("what negatives are drawn from", float(masses + excluded + lists)))
    if step.edges:
        found.append(Part("graph", 24 * step.edges + 6.0 * width * _F32, certain=True))
    return found


def _stream(config: Config, sizes: Sizes, workers: int, gpu: bool, draws_on_device: bool) -> list[Part]:
    """Return the memory of the batches drawn ahead, and of the data that they are drawn from."""
    sampling, pairs = config.effective_sampling, sizes.interactions / workers
    users, draws = sizes.owned(USERS, workers), sampling.negatives > 0
    lists = bool(sampling.reject or config.batch_needs.extra_positives or config.batch_needs.history)
    wide = 8 if sampling.distribution != "uniform" else 4
    # Users and items (int32), the shuffles of two epochs; lists in CSR form; excluded mass, and where it is excluded.
    data = pairs * (8 + 16 + 4 * lists + (8 + wide) * (draws and sampling.reject))
    data += 8 * users * lists + 9 * users * (draws and sampling.reject)
    # Slots of items, masses with their cumulative sum and guide points, marks of the de-duplication.
    data += sizes.items * (4 + (16 + 16 * (wide == 8) + 4) * draws + 14)
    data += 4 * users * config.batch_needs.history
    if sampling.distribution == "in_batch" and workers > 1:
        data += sizes.interactions * 24
    if "graph" in getattr(config.model, "reads", ()):
        data += 4 * pairs
    ahead = config.train.look_ahead_mib * MIB
    if config.stream_backend == "thread" and not gpu:
        return [Part("data of the stream", data, "host"), Part("batches ahead", min(ahead, _THREAD_BLOCKS), "host")]
    actors = actors_of(config, gpu, draws_on_device)
    process = (data + _IMPORTS["stream"] + 2 * 32 * MIB) * actors
    return [
        Part("stream: its data and imports", process, "stream"),
        Part("batches ahead", ahead * actors + _RAY_BLOCKS, "stream"),
    ]


def evaluated_users(sizes: Sizes, workers: int) -> float:
    """Return an upper bound on the users that a worker evaluates."""
    return min(sizes.owned(USERS, workers), sizes.held_out / workers)


def _ranking_tile(sizes: Sizes) -> float:
    """Return the memory of the scores that a GPU ranks at a time, with keys of the rows that have ties."""
    return 2.0 * _F32 * min(RANKED_SCORES, sizes.users * sizes.items)


def _evaluation(config: Config, sizes: Sizes, workers: int) -> float:
    """Return the memory of representations and rankings: those of the evaluated users, and of this worker's items."""
    users, items, k = evaluated_users(sizes, workers), sizes.owned(ITEMS, workers), max(config.eval.k)
    rankings = users * min(k, sizes.items) * 40  # scores and ids, then ids in two orders and hits
    model = config.model
    if not isinstance(model, EmbeddingConfig):
        return rankings
    ranks_by_cosine = (model.similarity if config.eval.similarity == "model" else config.eval.similarity) == "cosine"
    stored = _F32 * model.dim
    untrained = float(sizes.item_degrees.rows_C[sizes.item_degrees.degree_C == 0].sum())
    chosen = items if untrained and config.eval.untrained_items == "exclude" else 0
    normalized = (users + items) if ranks_by_cosine else 0
    float_copy = items if model.bfloat16 else 0
    graph = 4 * (sizes.owned(USERS, workers) + items) if "graph" in model.reads else 0
    return rankings + stored * (users + normalized + chosen + float_copy + graph + 2**16)


def _evaluated_pairs(sizes: Sizes, workers: int) -> float:
    """Return the memory of known and held-out pairs: those of all users, then those of the evaluated ones, by owner."""
    return (20 * sizes.interactions + 56 * sizes.held_out) / workers + 40 * sizes.held_out / workers + 9 * sizes.items
