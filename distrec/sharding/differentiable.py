"""Differentiable collectives: the backward pass of each is the transposed collective.

A collective in a backward pass would hang if the graph of one worker left it out. Each one here therefore takes and
returns a token, a zero that the loss ends with: so the backward passes run on every worker, in reverse order of the
calls, whatever a worker computes from the results.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from distrec.sharding.collectives import Exchange, LookupPlan

Collective = Callable[[Tensor], Tensor]
LinearMap = Callable[..., tuple[Tensor, ...]]


class StepExchange:
    """The differentiable collectives of one step. All workers must make the same calls in the same order.

        exchange = StepExchange(...)
        (items_UD,) = exchange.fetch(plan, rows_RD)
        exchange.attach(loss(items_UD)).backward()

    Losses are shares: those of the workers sum to the loss of the global batch, and gradients are those of this sum.
    `backward` must not be limited to some inputs, which could leave out the token. Under `torch.no_grad` nothing is
    recorded. With one worker nothing is exchanged or copied.
    """

    def __init__(self, exchange: Exchange, metered: Callable[[], AbstractContextManager[object]] = nullcontext) -> None:
        """
        Args:
            exchange: the collectives of the group.
            metered: makes a context in which each exchange runs, forward and backward.
        """
        self._exchange, self._metered = exchange, metered
        self._token: Tensor | None = None
        self.used = False
        """Whether anything was exchanged."""

    def fetch(self, plan: LookupPlan, *values: Tensor, exact: bool = False) -> tuple[Tensor, ...]:
        """Return the requested rows from their owners, (U, D_k), in the order of the request.

        The backward pass returns the gradients to the owners, and sums them there in the order of the ranks. Gradients
        are never rounded, where `send_bfloat16` rounds rows.

        Args:
            plan: plan of this look-up.
            values: this worker's values for `plan.rows_R`, (R, D_k): they travel as adjoining columns.
            exact: do not round the rows in any case.
        """
        if self._exchange.workers == 1 and (exact or not self._exchange.send_bfloat16):
            return values
        fetch = partial(self._exchange.fetch, plan, exact=exact)
        transpose = partial(self._exchange.sum_gradients, plan)
        return self._columns(values, fetch, transpose)

    def sum_at_owners(self, plan: LookupPlan, *values: Tensor) -> tuple[Tensor, ...]:
        """Return values for the requested rows to their owners and sum them there: the transpose of `fetch`.

        The backward pass fetches the gradients.

        Args:
            plan: plan of the look-up of the rows.
            values: values for the requested rows, (U, D_k): they travel as adjoining columns.

        Returns:
            sums for `plan.rows_R`, (R, D_k), added in the order of the ranks.
        """
        if self._exchange.workers == 1:
            return values
        transpose = partial(self._exchange.fetch, plan, exact=True)
        return self._columns(values, partial(self._exchange.sum_gradients, plan), transpose)

    def gather(self, part: Tensor) -> tuple[Tensor, slice]:
        """Return (the parts of all workers, concatenated; the slice of this worker). Parts may differ in length.

        The backward pass sums the gradients of all workers for this worker's part, in the order of the ranks.
        """
        if self._exchange.workers == 1:
            return part, slice(0, len(part))
        own = slice(0)

        def gather(rows: Tensor) -> Tensor:
            nonlocal own
            whole, own = self._exchange.gather(rows)
            return whole

        return self._record(part, gather, lambda grad: self._exchange.all_add(grad)[own]), own

    def all_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over the workers, in the order of the ranks. The backward pass sums the gradients likewise."""
        if self._exchange.workers == 1:
            return tensor
        return self._record(tensor, self._exchange.all_add, self._exchange.all_add)

    def linear_map(self, forward: LinearMap, transposed: LinearMap, *values: Tensor) -> tuple[Tensor, ...]:
        """Return `forward(*values)`, a linear map that makes collective calls of its own through this object.

        The backward pass is `transposed`, applied to the gradients. Both run without recording what they compute.
        """
        return self._record_map(forward, transposed, values)

    def attach(self, share: Tensor) -> Tensor:
        """Return this worker's share of the loss plus the token. To be called after the last collective."""
        token, self._token = self._token, None  # the graph refers to this object: a cycle would keep its buffers
        return share if token is None else share + token

    def _columns(self, values: tuple[Tensor, ...], collective: Collective, transpose: Collective) -> tuple[Tensor, ...]:
        """Record one collective on several values as adjoining columns."""
        if len(values) == 1:
            return (self._record(values[0], collective, transpose),)
        result = self._record(torch.cat(values, 1), collective, transpose)
        return torch.split(result, [value.shape[1] for value in values], 1)

    def _record(self, value: Tensor, collective: Collective, transpose: Collective) -> Tensor:
        """Return the result of a collective, recorded after the last one."""
        (result,) = self._record_map(partial(self._run, collective), partial(self._run, transpose), (value,))
        return result

    def _record_map(self, forward: LinearMap, transposed: LinearMap, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not torch.is_grad_enabled():
            return forward(*values)
        if self._token is None:
            self._token = torch.zeros((), device=self._exchange.device, requires_grad=True)
        self._token, *results = _LinearMap.apply(forward, transposed, self._token, *values)  # type: ignore[no-untyped-call]
        return tuple(results)

    def _run(self, collective: Collective, value: Tensor) -> tuple[Tensor]:
        self.used = True
        with self._metered():
            return (collective(value),)


class _LinearMap(torch.autograd.Function):
    """A linear map with collective calls: (token, values) -> (token, results). Gradients that autograd lacks are 0."""

    @staticmethod
    def forward(
        ctx: Any, forward: LinearMap, transposed: LinearMap, token: Tensor, *values: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.transposed = transposed
        return token.clone(), *forward(*values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_token: Tensor, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, grad_token, *ctx.transposed(*grads)
