"""Training steps that stay on the GPU: negatives are drawn there, and a step is replayed as a CUDA graph.

docs/gpu.md has figures, and what runs here. The host sends the pairs of many steps at once, and what else changes from
step to step: learning rates, bias corrections, the scale of decayed rows. It then launches one graph a step. A graph is
captured for each number of pairs that steps have, some twenty, so that nothing is padded and every loss runs as
elsewhere.

A step reads a table whole, with row numbers as indices, if it is small or has few rows beside those that the step
uses. Of another table it reads the rows in the batch: it sorts their numbers, in buffers of the size that they need if
all are distinct. An entry -1 in a list of rows is none.

C: pairs of all steps that are on the device; S: these steps; R: entries of a list of rows.
"""

import contextlib
import gc
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from distrec.kernels.dispatch import missing_triton
from distrec.models.base import EmbeddingConfig, Emit
from distrec.optim.sparse import COEFFICIENTS, SparseOptimizer, moves_all_rows, not_replayable
from distrec.sampling.batch import Batch
from distrec.sampling.negatives import NegativeSampler
from distrec.sampling.source import BatchSource
from distrec.sharding.device_copy import to_device
from distrec.sharding.table import ITEMS, USERS
from distrec.tracking.meters import StepMeters
from distrec.training.config import Config
from distrec.training.sharded_model import ShardedModel

_STEPS = 64  # sent at a time
_SMALL, _DENSE = 100_000, 8  # rows, and rows for each that the step uses, up to which a table is read whole
_SWEPT = 4_000_000  # rows of a table up to which `optim.idle=sweep` runs here


def prevented(config: Config, largest: int, device: torch.device, workers: int, installed: bool = False) -> str | None:
    """Return why steps cannot stay on the device; None if they can.

    Args:
        config: configuration of the run.
        largest: rows of the largest table.
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
    if workers > 1:
        return "rows are exchanged with other workers"
    with torch.device("meta"):
        layers = any(True for _ in model.build().parameters())
    if layers or "history" in model.reads:
        return f"model {model.name} has layers, or reads histories"
    if model.bfloat16 or config.train.send_bfloat16:
        return "rows are rounded to bfloat16"
    if model.user_dropout:
        return "masks of dropout are drawn on the host"
    if any(spec.bounds for spec in (*model.tables(), *config.loss.tables())):
        return f"loss {config.loss.name} bounds the rows of a table"
    if sweeps(config) and largest > _SWEPT:
        return f"optim.idle=sweep over {largest:,} rows"
    return not_replayable(config.optim, _strengths(config), "graph" in model.reads)


def _strengths(config: Config) -> list[float]:
    """Return the strength of decay of each table."""
    specs = (*config.model.tables(), *config.loss.tables())
    return [config.optim.decay.strength_of(spec.name, spec.decay) for spec in specs]


def sweeps(config: Config) -> bool:
    """Return whether a step that stays on the device updates all rows by `optim.idle=sweep`.

    Where rows outside the batch do not move, or by a common factor alone, it does nothing.
    """
    moving = any(moves_all_rows(config.optim, strength) for strength in _strengths(config))
    return config.optim.idle == "sweep" and moving


def rows_read(rows: int, uses: int) -> int:
    """Return how many rows of a table a step reads that uses so many, repeats counted."""
    return rows if rows <= max(_SMALL, _DENSE * uses) else uses


class SteppedTrainer(Protocol):
    """What steps use of a `Trainer`."""

    config: Config
    device: torch.device
    sharded: ShardedModel
    optimizers: dict[str, SparseOptimizer]
    meters: StepMeters

    def backward_on(self, batch: Batch, arrays: dict[str, Tensor], leaves: dict[str, Tensor]) -> Tensor:
        """Return the loss of a batch with these arrays, and set the gradients of the leaves."""

    def gradients_of(self, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradients of the leaves."""

    def norm(self, grads: list[Tensor], dense: Tensor | None) -> Tensor:
        """Return the norm of gradients."""

    def clip(self, grads: list[Tensor], norm: Tensor) -> None:
        """Scale gradients of this norm down to the largest allowed one."""


class DeviceSteps:
    """The steps of a trainer.

    Args:
        trainer: its tables, optimizers and loss are used. It owns the steps, and is not kept alive by them: what a
            finished training holds on the GPU is freed at once.
        source: source of its batches, which are `pairs_only`.
    """

    def __init__(self, trainer: SteppedTrainer, source: BatchSource) -> None:
        from distrec.sampling.device_draws import DeviceDraws  # here, as Triton may be missing

        self._trainer: SteppedTrainer = weakref.proxy(trainer)
        self._source, self._config = source, trainer.config
        self._device, seed = trainer.device, trainer.config.run.seed
        read = replace(source)  # not kept: what it holds of the data would travel with `source` to its processes
        sampler, needs = read.sampler, source.needs
        sampling = source.config
        self._drawn = sampling.distribution == "in_batch" or sampling.negatives > 0
        known = sampling.shared and sampling.reject and self._drawn
        positives = read.interactions_csr if known or needs.extra_positives else None
        self._draws = DeviceDraws(sampler, positives, seed, self._device)
        self._excludes, self._log_total = sampler.excludes, float(np.log(max(1, sampler.total)))
        sizes = source.step_sizes
        steps = min(_STEPS, source.steps)
        self._ahead = steps
        dtypes = (torch.int32, torch.int32, torch.int64)
        self._columns = tuple(self._zeros(steps * int(sizes.max()), dtype) for dtype in dtypes)
        self._start_S = self._zeros(steps, torch.int64)
        self._coefficients = {name: self._zeros((steps, COEFFICIENTS), torch.float64) for name in trainer.optimizers}
        self._loss_sum, self._norm = self._zeros((), torch.float64), self._zeros((), torch.float64)
        self._constants(sampler)
        self._graphs: dict[tuple[int, bool, bool], torch.cuda.CUDAGraph] = {}
        self._reads_all = trainer.sharded.graph is not None or sweeps(self._config)
        self._seen: set[tuple[int, bool, bool]] = set()
        self.captures = self._device.type == "cuda" and "batch" not in self._config.loss.needs()
        if self.captures:
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def _zeros(self, shape: int | tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device)

    def _constants(self, sampler: NegativeSampler) -> None:
        """Copy what never changes to the device."""
        loss = self._config.loss
        partitions = self._trainer.sharded.partitions
        self._count = {entity: partition.size(0) for entity, partition in partitions.items()}
        self._all_rows: dict[str, Tensor] = {}
        self._saturated_U: Tensor | None = None
        if sampler.excludes and sampler.saturated_U.any():
            self._saturated_U = torch.from_numpy(sampler.saturated_U).to(self._device)
        if "log_q_BN" in loss.needs():
            self._log_masses_V, self._log_free_U = (
                torch.from_numpy(values).to(self._device) for values in (sampler.log_masses_V, sampler.log_free_U)
            )
        if "positive_degree_B" in loss.needs():
            degree_V = self._trainer.sharded.owned_degrees(ITEMS).astype(np.float32)
            self._degree_V = torch.from_numpy(degree_V).to(self._device)

    def describe(self) -> str:
        """Return how steps run, for the log."""
        if self.captures:
            return "steps stay on the GPU, negatives are drawn there; each is one CUDA graph"
        return "negatives are drawn on the device, whose operations the host launches one by one"

    def train_epoch(self, epoch: int, first_step: int, batches: Iterator[Batch], emit: Emit) -> float:
        """Take the steps of an epoch; see `Learner.train_epoch`."""
        trainer, meters = self._trainer, self._trainer.meters
        self._loss_sum.zero_()
        step, steps = first_step, self._source.steps
        while step < steps:
            count = min(self._ahead, steps - step)
            for optimizer in trainer.optimizers.values():
                count = optimizer.steps_ahead(count)
            with meters.part("wait"):
                pairs = [next(batches) for _ in range(count)]
            assert (pairs[0].epoch, pairs[0].step) == (epoch, step), (pairs[0].epoch, pairs[0].step, epoch, step)
            with meters.part("look_up"):
                self._send(pairs)
            with meters.part("compute"):
                for batch in pairs:
                    step += 1
                    if batch.pairs:
                        self._take(batch.pairs, step == steps)
                    else:
                        self._draws.state[0] += 1
                    emit(step, self._loss_sum)
        return self._loss_sum.item()

    @property
    def gradient_norm(self) -> float:
        """Norm of the gradient of the last step of an epoch, before clipping."""
        return self._norm.item()

    def _send(self, batches: list[Batch]) -> None:
        """Copy the pairs of some steps to the device, and the coefficients of the optimizers."""
        first, sizes = batches[0], [batch.pairs for batch in batches]
        columns = [[getattr(batch, name) for batch in batches] for name in ("users_U", "items_U", "ordinal_B")]
        start_S = np.cumsum([0, *sizes[:-1]])
        # A step without pairs on any worker changes nothing: the optimizers do not count it.
        planned = np.flatnonzero(sizes)
        coefficients = []
        for optimizer in self._trainer.optimizers.values():
            coefficients_SC = np.zeros((len(batches), COEFFICIENTS))
            coefficients_SC[planned] = optimizer.look_ahead(len(planned))
            coefficients.append(coefficients_SC)
        state = np.array([0, first.epoch, first.step])
        sent = to_device([state, start_S, *map(np.concatenate, columns), *coefficients], self._device)
        buffers = [self._draws.state, self._start_S, *self._columns, *self._coefficients.values()]
        for buffer, values in zip(buffers, sent, strict=True):
            buffer[: len(values)].copy_(values)

    def _take(self, pairs: int, ends: bool) -> None:
        """Take the present step: replay its graph, capture it before, or launch its operations one by one.

        The first step of a size is launched, which compiles and loads its programs: a capture cannot.
        """
        size = pairs, ends, torch.are_deterministic_algorithms_enabled()
        if size in self._seen and size not in self._graphs and self.captures:
            try:
                self._graphs[size] = self._capture(pairs, ends)
            except RuntimeError as error:
                self.captures = False
                self._end_capture()
                warnings.warn(f"steps cannot be captured as a CUDA graph, and are slower: {error}", stacklevel=2)
        self._seen.add(size)
        if size in self._graphs:
            self._graphs[size].replay()
        else:
            self._step(pairs, ends)

    def _capture(self, pairs: int, ends: bool) -> torch.cuda.CUDAGraph:
        """Capture a step.

        Not by `torch.cuda.graph`, which collects garbage first: that takes longer than capturing. Nothing is collected
        meanwhile instead, as to free another graph would end the capture.
        """
        graph, collecting, here = torch.cuda.CUDAGraph(), gc.isenabled(), torch.cuda.current_stream(self._device)
        gc.disable()
        try:
            self._stream.wait_stream(here)
            with torch.cuda.stream(self._stream):
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    self._step(pairs, ends)
                except BaseException:
                    with contextlib.suppress(RuntimeError):  # that the capture was ended before: by the first error
                        graph.capture_end()
                    raise
                graph.capture_end()
            here.wait_stream(self._stream)
        finally:
            if collecting:
                gc.enable()
        return graph

    def _end_capture(self) -> None:
        """Free what a capture that failed leaves behind: a generator that takes itself for captured, memory in use.

        torch 2.11 ends neither, so that random numbers and replays raise errors from then on. The graphs captured
        before have the old state of the generator, and cannot be replayed.
        """
        self._graphs.clear()
        generator = torch.cuda.default_generators[self._stream.device_index]
        generator.graphsafe_set_state(generator.clone_state())
        with contextlib.suppress(RuntimeError):  # that nothing is allocated there: by a version that ends it
            torch._C._cuda_endAllocateToPool(self._stream.device_index, self._pool)
            torch._C._cuda_releasePool(self._stream.device_index, self._pool)

    def _step(self, pairs: int, ends: bool) -> None:
        """Take a step of so many pairs. No operation may wait for the device, nor read what changes on the host."""
        trainer, draws = self._trainer, self._draws
        user_B, item_B, ordinal_B = draws.pairs(self._columns, self._start_S, pairs)
        arrays, rows = self._arrays(user_B, item_B, ordinal_B)
        entity_of = {name: spec.entity for name, spec in trainer.sharded.specs.items()}
        index = draws.state[:1]
        leaves = {
            name: optimizer.read_ahead(rows[entity_of[name]], self._coefficients[name], index).requires_grad_()
            for name, optimizer in trainer.optimizers.items()
        }
        share = trainer.backward_on(Batch(-1, -1, pairs), arrays, leaves)
        grads = trainer.gradients_of(leaves)
        clip_norm = self._config.optim.clip_norm
        if ends or clip_norm is not None:
            norm = trainer.norm(list(grads.values()), None)
            self._norm.copy_(norm)
            if clip_norm is not None:
                trainer.clip(list(grads.values()), norm)
        for name, optimizer in trainer.optimizers.items():
            optimizer.step_ahead(rows[entity_of[name]], grads[name], self._coefficients[name], index)
        self._loss_sum.add_(share, alpha=pairs)
        index.add_(1)

    def _arrays(self, user_B: Tensor, item_B: Tensor, ordinal_B: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Draw. Return (the arrays of a batch, as `LossInputBuilder` reads them; the rows of users and items, (R,))."""
        sampling, needs = self._source.config, self._config.loss.needs()
        draws, m = self._draws, self._source.needs.extra_positives
        nothing = item_B.new_empty(0)
        if sampling.distribution == "in_batch":
            negatives = item_B
        elif sampling.shared:
            negatives = draws.shared_negatives(sampling.negatives)
        else:
            negatives = draws.negatives(user_B, ordinal_B, sampling.negatives)
        extra = draws.extra_positives(user_B, ordinal_B, m) if m else nothing
        users_R, (user_index_B,) = self._rows(USERS, [user_B])
        items_R, (positive_index_B, negative_index, extra_index) = self._rows(
            ITEMS, [item_B, negatives.view(-1), extra.view(-1)]
        )
        arrays = {
            "users_U": self._all(USERS) if len(users_R) == self._count[USERS] else users_R.clamp(min=0),
            "user_index_B": user_index_B,
            "user_id_B": user_B,
            "positive_id_B": item_B,
            "positive_index_B": positive_index_B,
            "negative_index": negative_index,
            "extra_index": extra_index,
            "masked": self._masked(user_B, negatives),
            "log_q": nothing,
        }
        if "log_q_BN" in needs:
            log_q = self._log_masses_V[negatives.long()]
            own = self._excludes and not sampling.shared
            total = self._log_free_U[user_B.long()][:, None] if own else self._log_total
            arrays["log_q"] = (log_q - total).float().view(-1)
        if "positive_degree_B" in needs:
            arrays["positive_degree_B"] = self._degree_V[item_B.long()]
        return arrays, {USERS: users_R, ITEMS: items_R}

    def _masked(self, user_B: Tensor, negatives: Tensor) -> Tensor:
        """Return which negatives are masked, (B, N) bool; (0,) if none can be."""
        sampling = self._source.config
        if not self._drawn:
            return user_B.new_empty(0, dtype=torch.bool)
        if sampling.reject and sampling.shared:
            return self._draws.known(user_B, negatives)
        if sampling.reject and self._saturated_U is not None:
            return self._saturated_U[user_B.long()][:, None].expand(negatives.shape)
        if sampling.distribution == "in_batch" and not sampling.reject:
            return torch.eye(len(user_B), dtype=torch.bool, device=self._device)
        return user_B.new_empty(0, dtype=torch.bool)

    def _all(self, table: str) -> Tensor:
        """Return the numbers of all rows, (R,) int64. They are made by a step that is launched, before any capture."""
        if table not in self._all_rows:
            self._all_rows[table] = self._trainer.sharded.all_rows(table)
        return self._all_rows[table]

    def _rows(self, table: str, uses: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return (rows that a step reads and updates, (R,) int64; for each use the index of its rows, int32)."""
        count = sum(len(use) for use in uses)
        if self._reads_all or (table == ITEMS and "catalogue" in self._config.loss.needs()):
            return self._all(table), uses
        if rows_read(self._count[table], count) == self._count[table]:
            return self._draws.touched(uses, self._count[table]), uses
        sorted_C, order_C = torch.cat(uses).sort()
        new_C = torch.ones_like(sorted_C, dtype=torch.bool)
        torch.ne(sorted_C[1:], sorted_C[:-1], out=new_C[1:])
        rank_C = new_C.cumsum(0) - 1
        rows_R = torch.full((count,), -1, dtype=torch.int64, device=self._device)
        rows_R.scatter_(0, rank_C, sorted_C.long())
        index_C = torch.empty_like(sorted_C).scatter_(0, order_C, rank_C.to(sorted_C.dtype))
        return rows_R, list(torch.split(index_C, [len(use) for use in uses]))


def pairs_only(source: BatchSource) -> BatchSource:
    """Return the source of the same steps whose batches hold no negatives: these are drawn on the device."""
    return replace(source, needs=replace(source.needs, pairs_only=True))
