"""Dense parameters: the modules of a model, replicated, and updated by the same rule as the tables."""

from typing import Any

import torch
from torch import Tensor, nn

from distrec.optim.config import OptimConfig
from distrec.optim.sparse import SparseOptimizer
from distrec.sharding.collectives import Exchange
from distrec.sharding.partition import Partition
from distrec.sharding.table import Table

DENSE = "dense"
"""Name under which their strength of decay is configured."""


class DenseOptimizer:
    """Updates the parameters of a module, alike at all workers.

    A parameter is a table all of whose rows are touched at each step: full decay is decay of the rows in the batch.
    """

    def __init__(self, module: nn.Module, config: OptimConfig, total_steps: int, exchange: Exchange) -> None:
        self._module, self._exchange = module, exchange
        strength = config.decay.strength_of(DENSE)
        scope = "none" if config.decay.scope == "none" else "in_batch"
        decay = config.decay.model_copy(update={"scope": scope, "strength": strength, "tables": {}})
        config = config.model_copy(update={"decay": decay})
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._tables = {name: _table(name, parameter.data) for name, parameter in self._parameters.items()}
        self.optimizers = {name: SparseOptimizer(table, config, total_steps) for name, table in self._tables.items()}

    def gradient(self) -> Tensor | None:
        """Return the gradient of all parameters, flat, summed over the workers in rank order; None without parameters.

        Clears the gradients of the parameters.
        """
        if not self._parameters:
            return None
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters.values()]
        summed = self._exchange.all_add(torch.cat([grad.reshape(-1) for grad in grads]))
        self._module.zero_grad()
        return summed

    def step(self, gradient: Tensor) -> None:
        """Take a step with a gradient in the form of `gradient`."""
        sizes = [table.stored_VD.numel() for table in self._tables.values()]
        for (name, table), part in zip(self._tables.items(), torch.split(gradient, sizes), strict=True):
            rows_VD = table.stored_VD
            self.optimizers[name].step(torch.arange(len(rows_VD), device=rows_VD.device), part.view_as(rows_VD))

    def state(self) -> dict[str, Any]:
        """Return parameters, buffers and optimizer state, equal at all workers."""
        for table in self._tables.values():
            table.flush()
        state = {f"module.{name}": value for name, value in self._module.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            state |= {f"optim.{name}.{key}": value for key, value in optimizer.state().items()}
        return state

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        load_module(self._module, state)
        for name, optimizer in self.optimizers.items():
            start = f"optim.{name}."
            optimizer.load({key.removeprefix(start): v for key, v in state.items() if key.startswith(start)})


def load_module(module: nn.Module, state: dict[str, Any]) -> None:
    """Restore the parameters and buffers of a module from what `DenseOptimizer.state` returned."""
    start = "module."
    module.load_state_dict({key.removeprefix(start): v for key, v in state.items() if key.startswith(start)})


def _table(name: str, values: Tensor) -> Table:
    """Return a parameter as a table of one bucket; a view, so that a step changes the parameter."""
    rows_VD = values.view(len(values), -1) if values.dim() else values.view(1, 1)
    return Table(name, Partition(len(rows_VD), 1, 1), 0, rows_VD)
