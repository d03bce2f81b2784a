"""The kernels for CPUs: numba's loops, each row taken through decay, rule and writing while it is in cache.

A row is the work of one thread and its arithmetic has one order, so the number of threads changes no digit.
"""

import numpy as np
import torch

from distrec.compiled.launch import Loop
from distrec.compiled.launch import run as _run
from distrec.optim.kernels import loops
from distrec.optim.kernels.interface import Decay, Owed
from distrec.optim.rules import SGD, Adagrad, LazyAdam, RowwiseAdagrad, Rule


class NumbaKernels:
    """Implements `interface.Kernels` with as many threads as torch uses."""

    def read(self, stored_VD: torch.Tensor, local_U: torch.Tensor, owed: Owed) -> torch.Tensor:
        rows_UD = stored_VD.new_empty(len(local_U), stored_VD.shape[1])
        _run(loops.READ, stored_VD.numpy(), local_U.numpy(), *_arrays(owed), rows_UD.numpy())
        return rows_UD

    def settle_(self, stored_VD: torch.Tensor, owed: Owed) -> None:
        _run(loops.SETTLE, stored_VD.numpy(), *_arrays(owed))

    def step_(
        self,
        stored_VD: torch.Tensor,
        local_U: torch.Tensor,
        grad_UD: torch.Tensor,
        decay: Decay,
        rule: Rule,
        numbers: tuple[float, ...],
    ) -> None:
        _run(
            _STEPS[type(rule)],
            stored_VD.numpy(),
            local_U.numpy(),
            grad_UD.contiguous().numpy(),  # one layout is one compilation
            *(slot.numpy() for slot in rule.slots.values()),
            *numbers,
            decay.shrink,
            decay.l2,
            *(_NOTHING_OWED if decay.owed is None else _arrays(decay.owed)),
        )


_STEPS: dict[type[Rule], Loop] = {
    SGD: loops.SGD,
    Adagrad: loops.ADAGRAD,
    RowwiseAdagrad: loops.ROWWISE_ADAGRAD,
    LazyAdam: loops.LAZY_ADAM,
}
_NOTHING_OWED = (np.zeros(0, np.int32), np.ones(1), 0)


def _arrays(owed: Owed) -> tuple[np.ndarray, np.ndarray, int]:
    return owed.written_V.numpy(), owed.left_S.numpy(), owed.now
