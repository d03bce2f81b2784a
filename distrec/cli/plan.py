"""The command `distrec plan`: memory, traffic and step time of a run, before anything is allocated."""

import argparse
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from distrec.core.errors import UserError

if TYPE_CHECKING:
    from distrec.training.config import Config
    from distrec.training.planning.cost_model import Costs
    from distrec.training.planning.estimate import Plan
    from distrec.training.planning.sizes import Sizes

EXAMPLES = """\
examples:
  distrec plan configs/gowalla_mf_ssm.yaml data.source=path/to/gowalla --workers 4
  distrec plan model.dim=128 --users 50e6 --items 50e6 --interactions 1e9 --workers 16 --machines 16 \\
      --network 100 --memory 64
  distrec plan --users 50e6 --items 50e6 --interactions 1e9 --workers 8 --gpu --network 400 --latency 20

Sizes stand for data; interactions are those of the training part. Exit code 2: the run does not fit.
"""
_GIB, _MIB = 2**30, 2**20


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    command.epilog = EXAMPLES
    command.add_argument("--workers", type=int, metavar="W", help="in place of train.workers")
    command.add_argument("--machines", type=int, metavar="M", help="machines that share the workers (default: 1)")
    text = "of each machine, or GPU; default: of this one; with --gpu, of the GPU in --costs"
    command.add_argument("--memory", type=float, metavar="GIB", help=text)
    command.add_argument("--host-memory", type=float, metavar="GIB", help="with --gpu: of each machine")
    command.add_argument("--gpu", action="store_true", help="a GPU for each worker")
    command.add_argument("--network", type=float, metavar="GBPS", help="bandwidth between machines, gigabits a second")
    command.add_argument("--latency", type=float, metavar="US", help="of a message between machines (default: 50)")
    for name in ("users", "items", "interactions"):
        command.add_argument(f"--{name}", type=_count, metavar="N", help=f"number of {name}, in place of data")
    text = "constants of the step time: a name, or a .json file that benchmarks/scaling.py wrote"
    command.add_argument("--costs", metavar="NAME | FILE", help=text)


def overrides(arguments: argparse.Namespace) -> list[str]:
    """Return the overrides of the configuration that the options stand for."""
    return [] if arguments.workers is None else [f"train.workers={arguments.workers}"]


def _count(text: str) -> int:
    """Parse 1000, 1_000 or 1e3."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value.is_integer():  # nor inf or nan
        raise argparse.ArgumentTypeError(f"{text} is not a whole number")
    return int(value)


def run(arguments: argparse.Namespace, config: "Config") -> None:
    """Print the plan.

    Raises:
        UserError: the run does not fit, or the options contradict each other.
    """
    from distrec.training.planning.cost_model import load_costs
    from distrec.training.planning.estimate import refusal

    plan = make_plan(arguments, config)
    name, costs = load_costs(arguments.costs, plan.gpu)
    limit, free = memory_limit(arguments, plan, costs), arguments.memory is None and not plan.gpu
    for line in (*_job(plan), *_memory(plan, limit, free), *_traffic(plan), *_time(plan, name, costs)):
        print(line)
    host = None if arguments.host_memory is None else arguments.host_memory * _GIB
    if host is not None and plan.gpu and plan.host_bytes > host:
        raise UserError(
            f"does not fit: the host of {plan.workers_per_machine} workers needs {plan.host_bytes / _GIB:,.3g} GiB, "
            f"and has {host / _GIB:,.3g} GiB; use more machines, or fewer train.stream_actors: each holds the data"
        )
    if limit is not None and plan.needed_bytes > limit:
        raise UserError(f"does not fit: {refusal(plan, limit, plan.needed_bytes, 'the parts')}")


def make_plan(arguments: argparse.Namespace, config: "Config") -> "Plan":
    """Return the plan that the options describe."""
    from distrec.training.planning.cost_model import Network
    from distrec.training.planning.estimate import Plan

    names = ("machines", "memory", "host_memory", "network")
    given = {name.replace("_", "-"): value for name in names if (value := getattr(arguments, name)) is not None}
    if wrong := [f"--{name}={value:g}" for name, value in given.items() if value <= 0]:
        raise UserError(f"{', '.join(wrong)} must be positive")
    machines, workers = arguments.machines or 1, config.train.workers
    if machines > workers:
        raise UserError(f"--machines={machines} are more than the workers ({workers}): set --workers")
    gpu = arguments.gpu or config.train.device == "cuda"
    if arguments.host_memory is not None and not gpu:
        raise UserError("--host-memory is that of machines with GPUs: set --gpu too, or --memory alone")
    if arguments.latency is not None and arguments.network is None:
        raise UserError("--latency is that of the network: set --network too")
    latency = 50.0 if arguments.latency is None else arguments.latency
    network = None if arguments.network is None else Network(arguments.network * 1e9 / 8, latency * 1e-6)
    return Plan(config, _sizes(arguments, config), machines, gpu, network)


def _sizes(arguments: argparse.Namespace, config: "Config") -> "Sizes":
    """Return the sizes that the options give, or those of the data."""
    from distrec.data.prepare import prepare
    from distrec.training.planning.sizes import Sizes

    users, items, interactions = arguments.users, arguments.items, arguments.interactions
    given = [value is not None for value in (users, items, interactions)]
    if all(given):
        return Sizes.assumed(users, items, interactions, max(config.data.buckets, config.train.workers))
    if any(given):
        raise UserError("--users, --items and --interactions go together: give all three, or none to read the data")
    return Sizes.of(prepare(config.data))


def memory_limit(arguments: argparse.Namespace, plan: "Plan", costs: "Costs") -> float | None:
    """Return the bytes of a machine or GPU: given, those of the GPU that was measured, or those free here."""
    import torch

    from distrec.core.memory import free_memory

    if arguments.memory is not None:
        return float(arguments.memory * _GIB)
    if plan.gpu:
        return None if costs.memory_gib is None else costs.memory_gib * _GIB
    return free_memory(torch.device("cpu"))


def _job(plan: "Plan") -> Iterator[str]:
    config, sizes = plan.config, plan.sizes
    loss = "" if "loss" in config.unused() else f" with {config.loss.name}"
    yield (
        f"{config.model.name}{loss}: {sizes.users:,} users, {sizes.items:,} items, {sizes.interactions:,} training "
        "interactions"
    )
    where = f"{plan.workers} {'GPU' if plan.gpu else 'worker'}{'s' * (plan.workers > 1)}"
    yield f"{where} on {plan.machines} machine{'s' * (plan.machines > 1)}"


def _memory(plan: "Plan", limit: float | None, free: bool) -> Iterator[str]:
    """Yield the table of memory, and the sum beside the limit, which may be what is `free` on this machine."""
    yield ""
    locations = {"device": "on the GPU" if plan.gpu else "", "host": "" if not plan.gpu else "on the host"}
    locations |= {"stream": "processes beside it", "machine": "once a machine"}
    yield from _table(
        "memory of a worker", "MiB", [(p.name, p.bytes / _MIB, locations[p.location]) for p in plan.memory]
    )
    workers = plan.workers_per_machine
    holder = "a GPU" if plan.gpu else f"a machine with {workers} worker{'s' * (workers > 1)}"
    has = "" if limit is None else f" of {limit / _GIB:,.2f} GiB{' that are free here' * free}"
    yield f"{holder}: {plan.needed_bytes / _GIB:,.2f} GiB{has}"
    if plan.gpu:
        yield f"its host, with {workers} worker{'s' * (workers > 1)}: {plan.host_bytes / _GIB:,.2f} GiB"


def _traffic(plan: "Plan") -> Iterator[str]:
    if not plan.traffic:
        return
    yield ""
    rows = [(c.name, c.bytes / 1e6, f"{c.calls:g} call{'s' * (c.calls != 1)}") for c in plan.traffic]
    yield from _table("sent by a worker in a step", "MB", rows, total=True)


def _time(plan: "Plan", name: str, costs: "Costs") -> Iterator[str]:
    seconds, step = plan.seconds(costs), plan.step
    yield ""
    if not seconds or step is None:
        yield f"time: there is no cost model for {plan.config.model.name}"
        return
    total = sum(seconds.values())
    rows = [(part, 1e3 * value, f"{value / total:.0%}") for part, value in seconds.items()]
    yield from _table("step", "ms", rows, total=True)
    config, evaluation, slowest = plan.config, plan.evaluation_seconds(costs), max(seconds, key=lambda k: seconds[k])
    every = config.eval.every if config.data.valid or config.data.valid_fraction else 0
    if every and evaluation > every * total * step.steps:
        slowest = f"evaluation of the valid part, with eval.every={every}; of a step, {slowest}"
    yield f"bottleneck: {slowest}"
    yield f"epoch: {step.steps:,} steps, {_duration(total * step.steps, plan)}"
    if evaluation:
        yield f"an evaluation, roughly: {_duration(evaluation, plan)}"
    yield f"costs {name}: {costs.origin}"
    if (error := costs.held_out) is None:
        yield "no measured steps were held out of the fit: take the times as rough"
    else:
        figures = f"{error.median:.0%} (median), {error.largest:.0%} (largest)"
        yield f"error on {error.points} steps held out of the fit: {figures}"
    if plan.machines > 1 and plan.network is None:
        yield "the network is not counted: set --network"
    if plan.workers > 1 and not costs.exchange_measured:
        yield "the exchange between workers was not measured there: only what --network adds is counted"


def _duration(seconds: float, plan: "Plan") -> str:
    return f"{_rounded(seconds, 4)} s, {_rounded(seconds * plan.machines / 3600, 3)} machine-hours"


def _rounded(value: float, digits: int) -> str:
    """Return a number with some significant digits, large ones as 4,473,000."""
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10**digits else f"{value:,.{digits}g}"


def _table(title: str, units: str, rows: Sequence[tuple[str, float, str]], total: bool = False) -> Iterator[str]:
    """Yield the lines of a table: names, values in some units, and a note."""
    listed = [(name, f"{value:,.1f}" if value >= 10 else f"{value:.3g}", note) for name, value, note in rows]
    if total:
        listed.append(("all", f"{sum(value for _, value, _ in rows):,.4g}", ""))
    width = max(len(title), *(len(name) + 2 for name, _, _ in listed))
    digits = max(len(units), *(len(value) for _, value, _ in listed))
    yield f"{title:<{width}}  {units:>{digits}}"
    for name, value, note in listed:
        yield f"  {name:<{width - 2}}  {value:>{digits}}  {note}".rstrip()
