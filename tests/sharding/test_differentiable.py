"""Losses built of collectives, compared with autograd over the whole tables in one process."""

import gc
import weakref
from contextlib import contextmanager

import pytest
import torch

from distrec.sharding.collectives import Exchange
from distrec.sharding.differentiable import StepExchange
from distrec.sharding.partition import Partition
from distrec.testing.ranks import run_ranks

ROWS, BUCKETS, DIM = 50, 7, 4
CPU = torch.device("cpu")


def requested_ids(rank, workers):
    """Return the ids that a rank requests, by owner: overlapping, of different lengths, none for rank 2."""
    ids = [torch.arange(0, 40, 3), torch.arange(10, 50), torch.arange(0)][rank]
    return ids[torch.argsort(Partition(ROWS, BUCKETS, workers).owner(ids), stable=True)]


def whole_tables():
    """Return two tables and a column of margins, (V, D), (V, 3), (V, 1)."""
    draws = torch.Generator().manual_seed(1)
    return [torch.randn(ROWS, width, dtype=torch.float64, generator=draws) for width in (DIM, 3, 1)]


def plan(exchange):
    partition, ids = Partition(ROWS, BUCKETS, exchange.workers), requested_ids(exchange.rank, exchange.workers)
    splits = torch.bincount(partition.owner(ids), minlength=exchange.workers).tolist()
    return exchange.plan_lookup(partition.local(ids).int().numpy(), splits).result()


# The loss in two stages, between which lie the collectives: the same code computes it with and without workers.


def part_of(first_UD, rank):
    """Return this worker's part of the gathered rows: of different lengths, empty where nothing is requested."""
    return first_UD[: 3 + 2 * rank].tanh()


def messages_of(first_UD, margins_U1, rank):
    return (first_UD * margins_U1).sin() * (rank + 1)


def share_of(fetched, gathered_BD, own, total, rank):
    """Return a worker's share, which uses each fetched value but the second of rank 0."""
    first_UD, second_U3, margins_U1 = fetched
    share = (first_UD.sin() * margins_U1).sum() + (gathered_BD[own] @ gathered_BD.T).exp().sum()
    share = share + (rank + 1) * total.square().sum()
    return share if rank == 0 else share + (second_U3.square() * margins_U1).sum()


def sums_share(sums_RD):
    return sums_RD.cos().sum() - sums_RD.numel()  # 0 for a row that no worker requests


def gradient_of(leaf):
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def distributed():
    """Return (this worker's share, its gradients scattered into the whole tables)."""
    exchange = Exchange(CPU)
    step, lookup, rank = StepExchange(exchange), plan(exchange), exchange.rank
    own = torch.from_numpy(Partition(ROWS, BUCKETS, exchange.workers).rows_of(rank))
    leaves = [table[own].requires_grad_() for table in whole_tables()]
    first, second, margins = (leaf.index_select(0, lookup.rows_R) for leaf in leaves)
    (first_UD,) = step.fetch(lookup, first)
    # Two widths in one exchange; rank 1 lacks the gradient of one of them.
    second_U3, margins_U1 = step.fetch(lookup, second.detach() if rank == 1 else second, margins)
    step.fetch(lookup, second)  # used by no worker
    part = part_of(first_UD, rank)
    gathered_BD, part_slice = step.gather(part)
    total = step.all_sum(part.sum(0))
    messages = messages_of(first_UD, margins_U1, rank)
    sums_RD, double_RD = step.sum_at_owners(lookup, messages, messages[:, :2] * 2)
    share = share_of((first_UD, second_U3, margins_U1), gathered_BD, part_slice, total, rank)
    share = share + sums_share(sums_RD) + sums_share(double_RD)
    step.attach(share).backward()
    gradients = [torch.zeros_like(table) for table in whole_tables()]
    for gradient, leaf in zip(gradients, leaves, strict=True):
        gradient[own] = gradient_of(leaf)
    return share.detach(), gradients


def dense(workers):
    """Return (the loss of the global batch, its gradients) by autograd over the whole tables."""
    leaves = [table.requires_grad_() for table in whole_tables()]
    owner = Partition(ROWS, BUCKETS, workers).owner(torch.arange(ROWS))
    tables = [leaves[0], torch.where(owner[:, None] == 1, leaves[1].detach(), leaves[1]), leaves[2]]
    ids = [requested_ids(rank, workers) for rank in range(workers)]
    fetched = [[table[i] for table in tables] for i in ids]
    parts = [part_of(first_UD, rank) for rank, (first_UD, _, _) in enumerate(fetched)]
    total, stops = sum(part.sum(0) for part in parts), torch.tensor([len(part) for part in parts]).cumsum(0)
    slices = [slice(stop - len(part), stop) for part, stop in zip(parts, stops, strict=True)]
    messages = [messages_of(values[0], values[2], rank) for rank, values in enumerate(fetched)]
    sums_VD = torch.zeros_like(leaves[0]).index_add(0, torch.cat(ids), torch.cat(messages))
    loss = sums_share(sums_VD) + sums_share(sums_VD[:, :2] * 2)
    for rank in range(workers):
        loss = loss + share_of(fetched[rank], torch.cat(parts), slices[rank], total, rank)
    loss.backward()
    return loss.detach(), [gradient_of(leaf) for leaf in leaves]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_gradients_equal_autograd_over_the_whole_tables(workers):
    shares, gradients = zip(*run_ranks(workers, distributed, timeout_s=60), strict=True)
    loss, expected = dense(workers)
    torch.testing.assert_close(sum(shares), loss, rtol=1e-12, atol=0)  # float64: sums in another order
    for table, gradient in enumerate(expected):
        torch.testing.assert_close(sum(g[table] for g in gradients), gradient, rtol=1e-12, atol=1e-12)


def rounded():
    """Fetch and sum with rows that travel as bfloat16; the factors of the gradients need float32."""
    exchange = Exchange(CPU, send_bfloat16=True)
    step, lookup, ids = StepExchange(exchange), plan(exchange), requested_ids(exchange.rank, exchange.workers)
    own = torch.from_numpy(Partition(ROWS, BUCKETS, exchange.workers).rows_of(exchange.rank))[lookup.rows_R]
    table_VD = whole_tables()[0].float()
    rows_RD, values_UD = table_VD[own].requires_grad_(), table_VD[ids].requires_grad_()
    (fetched_UD,), (sums_RD,) = step.fetch(lookup, rows_RD), step.sum_at_owners(lookup, values_UD)
    factor = 1 + 2**-12  # is 1 in bfloat16
    step.attach((fetched_UD * factor).sum() + (sums_RD * factor).sum()).backward()
    requests_V = sum(
        torch.bincount(requested_ids(r, exchange.workers), minlength=ROWS) for r in range(exchange.workers)
    )
    requests_R1 = requests_V[own][:, None]
    return {
        "fetched": torch.equal(fetched_UD, table_VD[ids].bfloat16().float()),
        "sums": torch.allclose(sums_RD, table_VD[own] * requests_R1, rtol=1e-6),
        "grad of rows": torch.equal(rows_RD.grad, (requests_R1 * factor).expand_as(rows_RD)),
        "grad of values": torch.equal(values_UD.grad, torch.full_like(values_UD, factor)),
    }


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_rows_are_rounded_and_gradients_are_not(workers):
    for result in run_ranks(workers, rounded, timeout_s=60):
        assert all(result.values()), result


class Recorder(Exchange):
    """Records the names of the collectives of a step, with their nesting in `metered`."""

    def __init__(self):
        super().__init__(CPU)
        self.calls, self.depth = [], 0

    @contextmanager
    def metered(self):
        self.depth += 1
        yield
        self.depth -= 1

    def _record(self, name, *arguments, **options):
        self.calls.append((name, self.depth))
        return getattr(super(), name)(*arguments, **options)

    def fetch(self, *arguments, **options):
        return self._record("fetch", *arguments, **options)

    def sum_gradients(self, *arguments):
        return self._record("sum_gradients", *arguments)

    def gather(self, *arguments):
        return self._record("gather", *arguments)

    def all_add(self, *arguments):
        return self._record("all_add", *arguments)


def recorded():
    """Return the collectives of the forward and of the backward passes."""
    exchange = Recorder()
    step, lookup = StepExchange(exchange, exchange.metered), plan(exchange)
    # The calls of rank 0 have nothing in common but the token.
    argument = (lambda tensor: tensor.detach()) if exchange.rank == 0 else (lambda tensor: tensor)
    (fetched_UD,) = step.fetch(lookup, torch.ones(len(lookup.rows_R), DIM))
    gathered_BD, own = step.gather(argument(fetched_UD))
    with torch.no_grad():
        step.all_sum(gathered_BD.sum())  # leaves the graph as it is
    total = step.all_sum(argument(fetched_UD.sum()))
    step.sum_at_owners(lookup, argument(gathered_BD[own]))
    forward, exchange.calls = exchange.calls, []
    # Rank 0 uses nothing, and the other one neither the last collective nor the results in the order of the calls.
    share = torch.zeros(()) if exchange.rank == 0 else total * gathered_BD.sum() + fetched_UD.sum()
    step.attach(share).backward()
    return forward, exchange.calls


def test_backward_passes_run_on_every_worker_in_reverse_order():
    for forward, backward in run_ranks(2, recorded, timeout_s=60):
        assert forward == [(name, 1) for name in ("fetch", "gather", "all_add", "all_add", "sum_gradients")]
        assert backward == [(name, 1) for name in ("fetch", "all_add", "all_add", "sum_gradients")]


def one_step(exchange):
    """Return weak references to the step's collectives, plan and results, without the garbage collector."""
    step, lookup = StepExchange(exchange), plan(exchange)
    rows_RD = torch.ones(len(lookup.rows_R), DIM, requires_grad=True)
    (fetched_UD,) = step.fetch(lookup, rows_RD)
    gathered_BD, own = step.gather(fetched_UD.sin())
    total = step.all_sum(gathered_BD[own].sum().exp())
    sums_RD, _ = step.sum_at_owners(lookup, fetched_UD, fetched_UD)
    step.attach(total + sums_RD.square().sum()).backward()
    named = {"step": step, "plan": lookup, "fetched": fetched_UD, "gathered": gathered_BD, "sums": sums_RD}
    return {name: weakref.ref(value) for name, value in named.items()}


def left_after_a_step():
    """Return (names of what lives after a step, number of cycles for the garbage collector)."""
    exchange = Exchange(CPU)
    one_step(exchange)  # imports and compiles
    gc.collect()
    gc.disable()
    try:
        return [name for name, reference in one_step(exchange).items() if reference() is not None], gc.collect()
    finally:
        gc.enable()


def test_nothing_of_a_step_is_left_after_its_backward_pass():
    """The garbage collector does not see a cycle through autograd's graph, which would keep the step's buffers."""
    assert run_ranks(2, left_after_a_step, timeout_s=60) == [([], 0)] * 2


def test_one_worker_exchanges_nothing():
    exchange = Recorder()
    step, lookup, values = StepExchange(exchange), plan(exchange), torch.ones(14, DIM, requires_grad=True)
    share = values.sum()
    assert step.fetch(lookup, values, share) == (values, share)
    assert step.sum_at_owners(lookup, values)[0] is values
    assert step.gather(values)[0] is values and step.gather(values)[1] == slice(0, 14)
    assert step.all_sum(values) is values and step.attach(share) is share
    assert exchange.calls == []
