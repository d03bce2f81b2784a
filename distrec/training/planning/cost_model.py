"""Cost model of a training step: seconds of each part are a sum of terms, each a constant of a machine times a count.

The constants are non-negative and were fitted to measured steps by `benchmarks/scaling.py`, which also writes the error
on steps that the fit has not seen. `costs.json` holds those of the machines that were measured.
"""

import json
from dataclasses import dataclass
from math import log2
from pathlib import Path
from typing import Any

from distrec.core.config import parse
from distrec.core.errors import UserError
from distrec.core.section import Section
from distrec.models.base import EmbeddingConfig
from distrec.sharding.table import ITEMS, USERS
from distrec.training.config import Config
from distrec.training.planning.sizes import Sizes, StepSizes, step_sizes
from distrec.training.planning.traffic import step_traffic
from distrec.training.planning.worker_memory import (
    actors_of,
    device_rows,
    on_device,
    optimizer_bytes,
    parameters,
)

SHIPPED = Path(__file__).with_name("costs.json")
STREAM = "stream"
"""The part that runs beside the step: drawing a batch."""
ON_DEVICE = "on_device"
"""A whole step that stays on a GPU, drawing included."""
_CACHE = 32 * 2**20  # bytes; of a shard beyond it, rows are read from memory

Terms = dict[str, dict[str, float]]
"""Counts, or constants, by part of a step and term."""


class HeldOut(Section):
    """Relative errors of the predicted step on measured points that the fit has not seen."""

    points: int
    median: float
    largest: float


class Costs(Section):
    """Constants of one machine."""

    origin: str
    """Where, when and with what they were measured."""
    device: str
    """`cpu`, a core for each worker, or `gpu`."""
    memory_gib: float | None = None
    """Memory of the GPU."""
    constants: Terms
    """Seconds by part and term, for a count of 1."""
    exchange_measured: bool = True
    """Whether workers exchanged rows in the measurement; if not, the exchange costs only what a network adds."""
    held_out: HeldOut | None = None


@dataclass(frozen=True)
class Network:
    """What the network between machines adds to an exchange."""

    bytes_per_s: float
    """Bandwidth of a machine, one way."""
    latency_s: float
    """Time of a message without content."""


def load_costs(name: str | None, gpu: bool) -> tuple[str, Costs]:
    """Return the name and the constants of a machine.

    Args:
        name: a name in `costs.json`, or a JSON file that `benchmarks/scaling.py` wrote; None: the first for the device.
        gpu: whether workers run on GPUs.

    Raises:
        UserError: there are none of that name, or the file is none of constants.
    """
    path = Path(name) if name and name.endswith(".json") else SHIPPED
    try:
        tree: Any = json.loads(path.read_text())
        known = {key: parse(Costs, value, where=f"{path}: {key}: ") for key, value in tree.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} holds no constants as benchmarks/scaling.py writes them: {error}") from None
    wanted = [key for key, costs in known.items() if costs.device == ("gpu" if gpu else "cpu")]
    chosen = wanted[:1] if name is None or path != SHIPPED else [name] if name in known else []
    if not chosen:
        raise UserError(f"no costs {name or 'for this device'} in {path}; known: {', '.join(known)}")
    return chosen[0], known[chosen[0]]


def counts(config: Config, sizes: Sizes, workers: int, step: StepSizes | None = None) -> Terms:
    """Return the counts of the terms of a step at one worker, by part."""
    model = config.model
    assert isinstance(model, EmbeddingConfig), model
    step = step or step_sizes(config, sizes, workers)
    found = [(spec, *optimizer_bytes(config, sizes, workers, spec, step.steps)) for spec in config.table_specs]
    stored, state = sum(entry[1] for entry in found), sum(entry[2] for entry in found)
    width = config.width(USERS) or model.dim
    values = (step.users + step.items_read) * width
    far, far_state = max(0.0, 1 - _CACHE / max(1, stored)), max(0.0, 1 - _CACHE / max(1, stored + state))
    slots = 1 + state / max(1, stored)  # arrays that an update changes
    rows, d = step.users + step.items_read, model.dim
    exchanges = step_traffic(config, sizes, workers, step)
    now, ahead = ([c for c in exchanges if c.ahead is when] for when in (False, True))
    rounds = log2(workers)  # of messages: an assumption beyond the measured numbers of workers
    return {
        "look_up": {
            "step": 1,
            "values": values,
            "values beyond the cache": values * far,
            "messages ahead": rounds * sum(c.calls for c in ahead),
            "bytes ahead": sum(c.bytes for c in ahead),
        },
        "exchange": {"messages": rounds * sum(c.calls for c in now), "bytes": sum(c.bytes for c in now)},
        "compute": {
            "step": 1,
            "multiply-adds, own items": step.own_scores * d,
            "multiply-adds, matrix products": step.shared_scores * d + rows * parameters(config),
            "scores": step.own_scores + step.shared_scores,
            "values": values,
            "values of items beyond the cache": max(0.0, 1 - _CACHE / (4 * step.items * d + 1)) * step.own_scores * d,
            "pairs": step.pairs * d,
            "edges": step.edges * d * getattr(model, "layers", 1),
        },
        "update": {"step": 1, "values": values * slots, "values beyond the cache": values * slots * far_state},
        STREAM: _stream_counts(step, sizes),
    }


def _device_counts(config: Config, sizes: Sizes, step: StepSizes, workers: int) -> dict[str, float]:
    """Return the counts of a step that stays on a GPU."""
    model, rows = config.model, device_rows(config, sizes, workers)
    assert isinstance(model, EmbeddingConfig), model
    normalized = 1.0 if model.similarity == "cosine" else 0.5
    # Rows of items to and from buffers, and their gradients: as much as the work on a row.
    copied = 1.0 if workers > 1 else 0.0
    return {
        "step": 1,
        "values of rows": model.dim * (normalized * sum(rows.values()) + copied * rows[ITEMS]),
        "values of own scores": step.own_scores * model.dim,
        "multiply-adds, matrix products": step.shared_scores * model.dim,
        "values of edges": step.edges * model.dim * getattr(model, "layers", 1),
    }


def _stream_counts(step: StepSizes, sizes: Sizes) -> dict[str, float]:
    marked = 16 * (step.pairs + step.draws) >= sizes.items  # else few ids are sorted: `kernels.dedup`
    return {
        "step": 1,
        "pairs": step.pairs,
        "draws": step.draws,
        "rows": step.users + step.items,
        "items of the catalogue": float(sizes.items) * marked,
    }


def step_seconds(
    costs: Costs, config: Config, sizes: Sizes, workers: int, machines: int = 1, network: Network | None = None
) -> dict[str, float]:
    """Return the seconds of each part of a step, in the order of a step; their sum is the step.

    Batches are drawn beside the step, on cores of their own: a step waits for what their drawing takes longer.
    """
    step = step_sizes(config, sizes, workers)
    gpu = costs.device == "gpu"
    draws_on_device = on_device(config, sizes, workers, gpu)
    if draws_on_device and ON_DEVICE in costs.constants:  # in graphs, of which the parts are not told apart
        whole = predicted(costs.constants, {ON_DEVICE: _device_counts(config, sizes, step, workers)})[ON_DEVICE]
        found = {"look_up": 0.0, "exchange": 0.0, "compute": whole, "update": 0.0}
        drawing = costs.constants[ON_DEVICE].get("pairs of the stream", 0.0) * step.pairs
    else:
        found = predicted(costs.constants, counts(config, sizes, workers, step))
        drawing = found.pop(STREAM)
    if network and workers > 1 and (machines > 1 or not costs.exchange_measured):
        exchanges = step_traffic(config, sizes, workers, step, gpu)
        per_machine = -(-workers // machines) if costs.exchange_measured else 1
        away = (workers - per_machine) / max(1, workers - 1)  # share of the other workers that are on other machines
        for part, ahead in (("exchange", False), ("look_up", True)):
            sent = sum(c.bytes for c in exchanges if c.ahead is ahead) * away * per_machine
            latency = sum(c.calls for c in exchanges if c.ahead is ahead) * network.latency_s
            found[part] += sent / network.bytes_per_s + latency
    drawing /= actors_of(config, gpu, draws_on_device)
    return {"wait": max(0.0, drawing - sum(found.values())), **found}


def predicted(constants: Terms, counted: Terms) -> dict[str, float]:
    """Return the seconds of each part: the sum of its terms."""
    return {
        part: sum(constants.get(part, {}).get(term, 0.0) * count for term, count in terms.items())
        for part, terms in counted.items()
    }
