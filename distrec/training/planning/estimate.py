"""The plan of a run: memory, traffic and step time of its workers, whether it fits, and what would fit."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from distrec.core.errors import UserError
from distrec.models.base import EmbeddingConfig
from distrec.models.ease import EASE
from distrec.training.config import Config
from distrec.training.planning.cost_model import Costs, Network, step_seconds
from distrec.training.planning.sizes import Sizes, StepSizes, step_sizes
from distrec.training.planning.traffic import Collective, step_traffic
from distrec.training.planning.worker_memory import Part, evaluated_users, total_bytes, worker_memory

GIB = 2**30
_MOST_WORKERS = 4096
_LARGE = 0.1  # share of the memory; below it the memory of the processes dominates, which `distrec doctor` checks


@dataclass(frozen=True)
class Plan:
    """What a run on some machines needs. Everything follows from sizes: nothing is allocated."""

    config: Config
    sizes: Sizes
    machines: int = 1
    """Machines among which the workers are divided evenly."""
    gpu: bool = False
    """Whether each worker has a GPU."""
    network: Network | None = None

    @property
    def workers(self) -> int:
        """Number of workers W."""
        return self.config.train.workers

    @property
    def workers_per_machine(self) -> int:
        """Workers of the machine that has most."""
        return -(-self.workers // self.machines)

    @cached_property
    def memory(self) -> list[Part]:
        """Memory of the first worker by part."""
        return worker_memory(self.config, self.sizes, self.workers, self.gpu)

    @cached_property
    def _other_memory(self) -> list[Part]:
        """Memory of a worker that is not the first by part; of a solver it may be less."""
        if isinstance(self.config.model, EmbeddingConfig):
            return self.memory
        return worker_memory(self.config, self.sizes, self.workers, self.gpu, first=False)

    @property
    def needed_bytes(self) -> float:
        """Memory needed where there is a limit: of a GPU, or of the machine with the first worker, all its workers and
        their streams."""
        return self._total(certain=False)

    @property
    def host_bytes(self) -> float:
        """Memory of a machine whose workers have GPUs: of their processes, streams, and checkpoints on their way."""
        worker = total_bytes(self.memory, "host", "stream") + total_bytes(self.memory, "device", certain=True)
        return self.workers_per_machine * worker + total_bytes(self.memory, "machine")

    @property
    def certain_bytes(self) -> float:
        """The part of `needed_bytes` that no estimate enters: tables, optimizer state, dense matrices of a solver."""
        return self._total(certain=True)

    def _total(self, certain: bool) -> float:
        if self.gpu:
            return total_bytes(self.memory, "device", certain=certain)
        others = (self.workers_per_machine - 1) * total_bytes(
            self._other_memory, "device", "host", "stream", certain=certain
        )
        return total_bytes(self.memory, "device", "host", "stream", "machine", certain=certain) + others

    @cached_property
    def step(self) -> StepSizes | None:
        """Sizes of a step; None for a solver."""
        embeds = isinstance(self.config.model, EmbeddingConfig)
        return step_sizes(self.config, self.sizes, self.workers) if embeds else None

    @property
    def traffic(self) -> list[Collective]:
        """The collectives of a step; none for a solver or one worker."""
        return step_traffic(self.config, self.sizes, self.workers, self.step, self.gpu) if self.step else []

    def seconds(self, costs: Costs) -> dict[str, float]:
        """Return the seconds of each part of a step by a cost model; {} for a solver."""
        if not self.step:
            return {}
        return step_seconds(costs, self.config, self.sizes, self.workers, self.machines, self.network)

    def evaluation_seconds(self, costs: Costs) -> float:
        """Return a rough time of one evaluation: its scores, as one of the three products of a training step.

        0 for a solver, or if the costs have no matrix products.
        """
        if not isinstance(model := self.config.model, EmbeddingConfig):
            return 0.0
        products = costs.constants.get("compute", {}).get("multiply-adds, matrix products", 0.0)
        return evaluated_users(self.sizes, self.workers) * self.sizes.items * model.dim * products / 3

    def changed(self, **sections: Mapping[str, object]) -> "Plan":
        """Return the plan with some keys of the configuration changed: `changed(model={"dim": 32})`."""
        return replace(self, config=self.config.changed(**sections))


def alternatives(plan: Plan, limit: float) -> Iterator[tuple[str, Plan]]:
    """Yield changes after which a plan fits, the smallest of each kind, with the plan that results.

    Args:
        plan: a plan that needs more than `limit`.
        limit: bytes of a machine, or of a GPU.
    """
    candidates = [_with_more_workers(plan, limit)]
    model = plan.config.model
    if isinstance(model, EmbeddingConfig):
        candidates += _smaller_rows(plan, model, limit)
    elif isinstance(model, EASE):
        candidates.append(("model.precision=float32", plan.changed(model={"precision": "float32"})))
    for candidate in candidates:
        if candidate is not None and candidate[1].needed_bytes <= limit:
            yield candidate


def _with_more_workers(plan: Plan, limit: float) -> tuple[str, Plan] | None:
    """Return the plan with the fewest more workers and machines, doubled, that fit."""
    workers, machines, sizes = plan.workers, plan.machines, plan.sizes
    while workers < _MOST_WORKERS:
        # At first the same workers on more machines, as far as there are workers for them.
        workers, machines = (workers, min(workers, 2 * machines)) if machines < workers else (2 * workers, 2 * machines)
        buckets = max(sizes.buckets, workers)
        larger = replace(plan.changed(train={"workers": workers}), machines=machines)
        larger = replace(larger, sizes=replace(sizes, buckets=buckets))
        if larger.needed_bytes <= limit:
            prepared = f" data.buckets={buckets}" if buckets > sizes.buckets else ""
            where = f"{workers} GPUs" if plan.gpu else f"{machines} machine{'s' * (machines > 1)}"
            return f"train.workers={workers}{prepared} on {where}", larger
    return None


def _smaller_rows(plan: Plan, model: EmbeddingConfig, limit: float) -> list[tuple[str, Plan] | None]:
    """Return plans with less memory for a row: a smaller dimension, bfloat16, one accumulator a row."""
    found: list[tuple[str, Plan] | None] = []
    rule = {} if plan.config.optim.rule in ("sgd", "rowwise_adagrad") else {"rule": "rowwise_adagrad"}
    half = {} if model.bfloat16 else {"bfloat16": True}
    dim = model.dim
    while dim > 8:
        dim //= 2
        if (smaller := plan.changed(model={"dim": dim})).needed_bytes <= limit:
            found.append((f"model.dim={dim}", smaller))
            break
    if half:
        found.append(("model.bfloat16=true", plan.changed(model=half)))
    if rule:
        found.append(("optim.rule=rowwise_adagrad", plan.changed(optim=rule)))
    if half and rule and not any(entry and entry[1].needed_bytes <= limit for entry in found[-2:]):
        found.append(("model.bfloat16=true optim.rule=rowwise_adagrad", plan.changed(model=half, optim=rule)))
    return found


def refusal(plan: Plan, limit: float, needed: float, what: str) -> str:
    """Return why a plan does not fit, and what would: the text of an error."""
    holder = "each GPU has" if plan.gpu else "each machine has" if plan.machines > 1 else "the machine has"
    fits = [f"{change} ({other.needed_bytes / GIB:.3g} GiB)" for change, other in alternatives(plan, limit)]
    advice = f"what would fit: {'; '.join(fits)}" if fits else "no number of workers or smaller rows would fit"
    of = "a worker" if plan.gpu else f"{plan.workers_per_machine} worker{'s' * (plan.workers_per_machine > 1)}"
    return f"{what} of {of} need {needed / GIB:.3g} GiB, and {holder} {limit / GIB:.3g} GiB; {advice}"


def memory_note(plan: Plan, limit: float) -> str | None:
    """Return a note if the estimated memory of large tables exceeds a limit in bytes; None if it does not.

    Raises:
        UserError: tables and optimizer state alone exceed it.
    """
    if plan.certain_bytes > limit:
        what = "tables and optimizer state" if plan.step else "the model's matrices"
        raise UserError(f"not enough memory: {refusal(plan, limit, plan.certain_bytes, what)}")
    if plan.needed_bytes > limit and plan.certain_bytes > _LARGE * limit:
        return f"memory may not suffice: {refusal(plan, limit, plan.needed_bytes, 'the estimated parts')}"
    return None
