"""Rules: how a gradient changes its row. A rule owns its accumulators and sees nothing of decay or schedules.

To add one, write a class and register it: configuration and `SparseOptimizer` find it by its name. `kernels/loops.py`
and, for GPUs, `kernels/programs.py` have each rule again, as one pass over the rows.
"""

import copy
import math
from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

import torch

from distrec.core.registry import Registry
from distrec.sharding.initialization import zeros


class Hyper(Protocol):
    """The part of `OptimConfig` that rules read. A protocol, as the configuration itself imports this file."""

    @property
    def beta1(self) -> float: ...

    @property
    def beta2(self) -> float: ...

    @property
    def eps(self) -> float: ...

    @property
    def momentum(self) -> float: ...


class Rule(ABC):
    """One rule over one shard. Its accumulators are in `slots`: name -> (V_local, ...), in the order of the rows."""

    l2_is_decoupled: ClassVar[bool] = False
    """Whether lambda * w in the gradient does what decoupled decay does: only if the step is linear in it."""

    moves_idle: ClassVar[bool] = False
    """Whether a step also moves rows without a gradient. As a dense optimizer, it then takes their gradient as zero."""

    def __init__(self, rows_VD: torch.Tensor, hyper: Hyper) -> None:
        """Allocates accumulators for a shard like `rows_VD`: its size, device and dtype, but float32 for bfloat16."""
        self.slots: dict[str, torch.Tensor] = {}

    @abstractmethod
    def coefficients(self, lr: float, t: int) -> tuple[float, ...]:
        """What a step needs beside tensors, in the order in which `update` takes it.

        The row must move in proportion to `lr`, and accumulators must not depend on it.

        Args:
            lr: the learning rate of this step.
            t: the step of the run, 1-based, also counting those that did not touch a row.
        """

    @abstractmethod
    def update(
        self, local_U: torch.Tensor, rows_UD: torch.Tensor, grad_UD: torch.Tensor, *coefficients: float
    ) -> torch.Tensor:
        """The touched rows after a step, in plain torch. Reads and writes the accumulators of these rows only.

        Args:
            local_U: local row numbers, int64, unique.
            rows_UD: the rows before the step; may be overwritten, and the result may be this tensor.
            grad_UD: their gradients; not written to.
            numbers: `self.numbers` of this step.
        """

    def fades_after(self, dtype: torch.dtype) -> int | None:
        """Idle steps without l2 after which a row of this dtype does not move any more; None: it never stops."""
        return None

    def fade(self, local_U: torch.Tensor, steps_U: torch.Tensor) -> None:
        """Moves the accumulators of some rows by idle steps that leave the row itself as it is."""
        raise AssertionError(f"{type(self).__name__} never fades: its `fades_after` says so")

    def of_rows(self, local_U: torch.Tensor) -> "Rule":
        """The same rule over some rows, with copies of their accumulators."""
        part = copy.copy(self)
        part.slots = {name: slot.index_select(0, local_U) for name, slot in self.slots.items()}
        return part


def _zeros(rows_VD: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return zeros(shape, torch.float32 if rows_VD.dtype == torch.bfloat16 else rows_VD.dtype, rows_VD.device)


RULES: Registry[type[Rule]] = Registry("optimizer rule")


@RULES.register("sgd")
class SGD(Rule):
    """w <- w - lr g."""

    l2_is_decoupled = True

    def coefficients(self, lr: float, t: int) -> tuple[float, ...]:
        return (lr,)

    def update(self, local_U: torch.Tensor, rows_UD: torch.Tensor, grad_UD: torch.Tensor, lr: float) -> torch.Tensor:
        return rows_UD.sub_(grad_UD, alpha=lr)


@RULES.register("momentum")
class Momentum(Rule):
    """b <- mu b + g;  w <- w - lr b, b from 0: torch.optim.SGD(momentum=mu), for every row, touched or not."""

    moves_idle = True

    def __init__(self, rows_VD: torch.Tensor, hyper: Hyper) -> None:
        self.momentum = hyper.momentum
        self.slots = {"buffer": _zeros(rows_VD, rows_VD.shape)}

    def coefficients(self, lr: float, t: int) -> tuple[float, ...]:
        return lr, self.momentum

    def update(
        self, local_U: torch.Tensor, rows_UD: torch.Tensor, grad_UD: torch.Tensor, lr: float, momentum: float
    ) -> torch.Tensor:
        buffer_UD = self.slots["buffer"].index_select(0, local_U).mul_(momentum).add_(grad_UD)
        self.slots["buffer"].index_copy_(0, local_U, buffer_UD)
        return rows_UD.sub_(buffer_UD, alpha=lr)


@RULES.register("adagrad")
class Adagrad(Rule):
    """s <- s + g^2;  w <- w - lr g / (sqrt(s) + eps), s from 0. Duchi et al. 2011; the same as torch.optim.Adagrad."""

    def __init__(self, rows_VD: torch.Tensor, hyper: Hyper) -> None:
        self._eps = hyper.eps
        self.slots = {"sum": _zeros(rows_VD, rows_VD.shape)}

    def coefficients(self, lr: float, t: int) -> tuple[float, ...]:
        return lr, self._eps

    def update(
        self, local_U: torch.Tensor, rows_UD: torch.Tensor, grad_UD: torch.Tensor, lr: float, eps: float
    ) -> torch.Tensor:
        sum_UD = self.slots["sum"].index_select(0, local_U).addcmul_(grad_UD, grad_UD)
        self.slots["sum"].index_copy_(0, local_U, sum_UD)
        return rows_UD.addcdiv_(grad_UD, sum_UD.sqrt_().add_(eps), value=-lr)


@RULES.register("rowwise_adagrad")
class RowwiseAdagrad(Rule):
    """s <- s + mean of g^2 over the row;  w <- w - lr g / (sqrt(s) + eps), s from 0, one number a row.

    FBGEMM's EXACT_ROWWISE_ADAGRAD, without its options: at D = 64, one sixty-fourth of Adagrad's memory.
    """

    def __init__(self, rows_VD: torch.Tensor, hyper: Hyper) -> None:
        self._eps = hyper.eps
        self.slots = {"sum": _zeros(rows_VD, rows_VD.shape[:1])}

    def coefficients(self, lr: float, t: int) -> tuple[float, ...]:
        return lr, self._eps

    def update(
        self, local_U: torch.Tensor, rows_UD: torch.Tensor, grad_UD: torch.Tensor, lr: float, eps: float
    ) -> torch.Tensor:
        sum_U = self.slots["sum"].index_select(0, local_U).add_(grad_UD.square().mean(1))
        self.slots["sum"].index_copy_(0, local_U, sum_U)
        return rows_UD.addcdiv_(grad_UD, sum_U.sqrt_().add_(eps).unsqueeze(1), value=-lr)


@RULES.register("lazy_adam")
class LazyAdam(Rule):
    """Adam (Kingma and Ba 2015) whose moments move only when their row is touched; the same as torch.optim.SparseAdam.

    m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2;
    w <- w - lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps), with t the step of the run, not of the row.
    """

    def __init__(self, rows_VD: torch.Tensor, hyper: Hyper) -> None:
        self.beta1, self.beta2, self._eps = hyper.beta1, hyper.beta2, hyper.eps
        self.slots = {name: _zeros(rows_VD, rows_VD.shape) for name in ("moment1", "moment2")}

    def coefficients(self, lr: float, t: int) -> tuple[float, ...]:
        step_size = lr * (1 - self.beta2**t) ** 0.5 / (1 - self.beta1**t)
        return step_size, self.beta1, self.beta2, self._eps

    def update(
        self,
        local_U: torch.Tensor,
        rows_UD: torch.Tensor,
        grad_UD: torch.Tensor,
        step_size: float,
        beta1: float,
        beta2: float,
        eps: float,
    ) -> torch.Tensor:
        moment1_UD = self.slots["moment1"].index_select(0, local_U).lerp_(grad_UD, 1 - beta1)
        self.slots["moment1"].index_copy_(0, local_U, moment1_UD)
        moment2_UD = self.slots["moment2"].index_select(0, local_U).mul_(beta2)
        moment2_UD.addcmul_(grad_UD, grad_UD, value=1 - beta2)
        self.slots["moment2"].index_copy_(0, local_U, moment2_UD)
        return rows_UD.addcdiv_(moment1_UD, moment2_UD.sqrt_().add_(eps), value=-step_size)


@RULES.register("adam")
class Adam(LazyAdam):
    """Adam as torch.optim.Adam and AdamW have it: the moments of every row move at every step, and so does the row.

    It divides by sqrt(v) / sqrt(1 - beta2^t) + eps, where `lazy_adam` has sqrt(v) + eps. With both sides of the
    fraction times sqrt(1 - beta2^t) this is the formula of `lazy_adam` with an eps that grows to its value.
    """

    moves_idle = True

    def coefficients(self, lr: float, t: int) -> tuple[float, ...]:
        step_size, beta1, beta2, eps = super().coefficients(lr, t)
        return step_size, beta1, beta2, eps * (1 - beta2**t) ** 0.5

    def fades_after(self, dtype: torch.dtype) -> int | None:
        """A missed update is to the one before as beta1 to sqrt(beta2), or less."""
        ratio = self.beta1 / self.beta2**0.5 if self.beta2 else math.inf
        if ratio >= 1:
            return None
        digits = -math.log(torch.finfo(dtype).eps) + 6  # 400 times below a rounding
        return 1 + math.ceil(digits / -math.log(ratio)) if ratio else 1

    def fade(self, local_U: torch.Tensor, steps_U: torch.Tensor) -> None:
        for moment_VD, beta in ((self.slots["moment1"], self.beta1), (self.slots["moment2"], self.beta2)):
            factor_U = torch.pow(torch.tensor(beta, dtype=torch.float64), steps_U.double()).to(moment_VD)
            moment_VD.index_copy_(0, local_U, moment_VD.index_select(0, local_U) * factor_U.unsqueeze(1))
