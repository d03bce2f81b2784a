"""Update rules: how a gradient changes its row. A rule owns its accumulators and knows neither decay nor schedules.

To add one, write a class with `@register(NAME)`; configuration and `SparseOptimizer` find it by this name. The compiled
kernels, `kernels/numba/optimizer.py` and `kernels/triton/optimizer_programs.py`, have the update of a row again.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Protocol, Self, TypeVar

import torch
from torch import Tensor

from distrec.core.huge_pages import zeros
from distrec.core.registry import Registry


class Hyperparameters(Protocol):
    """The part of `OptimConfig` that rules read. A protocol, as the configuration imports this module."""

    @property
    def beta1(self) -> float: ...

    @property
    def beta2(self) -> float: ...

    @property
    def eps(self) -> float: ...

    @property
    def momentum(self) -> float: ...


class Rule(ABC):
    """One rule over one shard. Implements `distrec.kernels.optimizer.UpdateRule`."""

    name: ClassVar[str]
    """Registered name, set by `register`."""

    l2_is_decoupled: ClassVar[bool] = False
    """Whether lambda * w in the gradient equals decoupled decay: only if the step is linear in the gradient."""

    moves_idle: ClassVar[bool] = False
    """Whether a step also updates rows outside the batch, with gradients of zero, as a dense optimizer does."""

    def __init__(self, rows_VD: Tensor, hyper: Hyperparameters) -> None:
        """Allocate accumulators for a shard of the size, device and dtype of `rows_VD`, but float32 for bfloat16."""
        self.slots: dict[str, Tensor] = {}

    @abstractmethod
    def coefficients(self, lr: float, t: int) -> tuple[float, ...]:
        """Return the scalars of a step, in the order in which `update` takes them.

        The change of a row must be proportional to `lr`, and accumulators must not depend on it.

        Args:
            lr: the learning rate of this step.
            t: the step of the run, from 1, also counting those that did not touch a row.
        """

    @abstractmethod
    def update(self, local_U: Tensor, rows_UD: Tensor, grad_UD: Tensor, *coefficients: float) -> Tensor:
        """Return the touched rows after a step, in plain torch. Reads and writes the accumulators of these rows only.

        Args:
            local_U: local rows, int64, unique.
            rows_UD: the rows before the step; may be overwritten and returned.
            grad_UD: their gradients; not overwritten.
            coefficients: `self.coefficients` of this step.
        """

    def fades_after(self, dtype: torch.dtype) -> int | None:
        """Return the number of idle steps without l2 after which rows of this dtype no longer change; None: never."""
        return None

    @property
    def idle_decay(self) -> tuple[float, ...]:
        """Factor of each slot at an idle step, for rules that fade."""
        return ()

    def of_rows(self, local_U: Tensor) -> Self:
        """Return the same rule over some rows, with copies of their accumulators."""
        part = copy.copy(self)
        part.slots = {name: slot.index_select(0, local_U) for name, slot in self.slots.items()}
        return part


RULES: Registry[type[Rule]] = Registry("optimizer rule")
_R = TypeVar("_R", bound=type[Rule])


def register(name: str) -> Callable[[_R], _R]:
    """Return a decorator that names a rule and registers it in `RULES`."""

    def named(rule: _R) -> _R:
        rule.name = name
        RULES.register(name)(rule)
        return rule

    return named


def _zeros(rows_VD: Tensor, shape: tuple[int, ...]) -> Tensor:
    return zeros(shape, torch.float32 if rows_VD.dtype == torch.bfloat16 else rows_VD.dtype, rows_VD.device)


@register("sgd")
class SGD(Rule):
    """w <- w - lr g."""

    l2_is_decoupled = True

    def coefficients(self, lr: float, t: int) -> tuple[float, ...]:
        return (lr,)

    def update(self, local_U: Tensor, rows_UD: Tensor, grad_UD: Tensor, *coefficients: float) -> Tensor:
        (lr,) = coefficients
        return rows_UD.sub_(grad_UD, alpha=lr)


@register("momentum")
class Momentum(Rule):
    """b <- mu b + g;  w <- w - lr b, b from 0: torch.optim.SGD(momentum=mu), for every row, touched or not."""

    moves_idle = True

    def __init__(self, rows_VD: Tensor, hyper: Hyperparameters) -> None:
        self.momentum = hyper.momentum
        self.slots = {"buffer": _zeros(rows_VD, rows_VD.shape)}

    def coefficients(self, lr: float, t: int) -> tuple[float, ...]:
        return lr, self.momentum

    def update(self, local_U: Tensor, rows_UD: Tensor, grad_UD: Tensor, *coefficients: float) -> Tensor:
        lr, momentum = coefficients
        buffer_UD = self.slots["buffer"].index_select(0, local_U).mul_(momentum).add_(grad_UD)
        self.slots["buffer"].index_copy_(0, local_U, buffer_UD)
        return rows_UD.sub_(buffer_UD, alpha=lr)


@register("adagrad")
class Adagrad(Rule):
    """s <- s + g^2;  w <- w - lr g / (sqrt(s) + eps), s from 0 (Duchi et al. 2011), as torch.optim.Adagrad."""

    def __init__(self, rows_VD: Tensor, hyper: Hyperparameters) -> None:
        self._eps = hyper.eps
        self.slots = {"sum": _zeros(rows_VD, rows_VD.shape)}

    def coefficients(self, lr: float, t: int) -> tuple[float, ...]:
        return lr, self._eps

    def update(self, local_U: Tensor, rows_UD: Tensor, grad_UD: Tensor, *coefficients: float) -> Tensor:
        lr, eps = coefficients
        sum_UD = self.slots["sum"].index_select(0, local_U).addcmul_(grad_UD, grad_UD)
        self.slots["sum"].index_copy_(0, local_U, sum_UD)
        return rows_UD.addcdiv_(grad_UD, sum_UD.sqrt_().add_(eps), value=-lr)


@register("rowwise_adagrad")
class RowwiseAdagrad(Adagrad):
    """s <- s + mean of g^2 over the row;  w <- w - lr g / (sqrt(s) + eps), one s a row, from 0.

    FBGEMM's EXACT_ROWWISE_ADAGRAD, without its options: at D = 64, one sixty-fourth of Adagrad's memory.
    """

    def __init__(self, rows_VD: Tensor, hyper: Hyperparameters) -> None:
        self._eps = hyper.eps
        self.slots = {"sum": _zeros(rows_VD, rows_VD.shape[:1])}

    def update(self, local_U: Tensor, rows_UD: Tensor, grad_UD: Tensor, *coefficients: float) -> Tensor:
        lr, eps = coefficients
        sum_U = self.slots["sum"].index_select(0, local_U).add_(grad_UD.square().mean(1))
        self.slots["sum"].index_copy_(0, local_U, sum_U)
        return rows_UD.addcdiv_(grad_UD, sum_U.sqrt_().add_(eps).unsqueeze(1), value=-lr)


@register("lazy_adam")
class LazyAdam(Rule):
    """Adam (Kingma and Ba 2015) that updates only the moments of touched rows, as torch.optim.SparseAdam.

    m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2;
    w <- w - lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps), with t the step of the run, not of the row.
    """

    def __init__(self, rows_VD: Tensor, hyper: Hyperparameters) -> None:
        self.beta1, self.beta2, self._eps = hyper.beta1, hyper.beta2, hyper.eps
        self.slots = {name: _zeros(rows_VD, rows_VD.shape) for name in ("moment1", "moment2")}

    def coefficients(self, lr: float, t: int) -> tuple[float, ...]:
        step_size = lr * (1 - self.beta2**t) ** 0.5 / (1 - self.beta1**t)
        return step_size, self.beta1, self.beta2, self._eps

    def update(self, local_U: Tensor, rows_UD: Tensor, grad_UD: Tensor, *coefficients: float) -> Tensor:
        step_size, beta1, beta2, eps = coefficients
        moment1_UD = self.slots["moment1"].index_select(0, local_U).lerp_(grad_UD, 1 - beta1)
        self.slots["moment1"].index_copy_(0, local_U, moment1_UD)
        moment2_UD = self.slots["moment2"].index_select(0, local_U).mul_(beta2)
        moment2_UD.addcmul_(grad_UD, grad_UD, value=1 - beta2)
        self.slots["moment2"].index_copy_(0, local_U, moment2_UD)
        return rows_UD.addcdiv_(moment1_UD, moment2_UD.sqrt_().add_(eps), value=-step_size)


@register("adam")
class Adam(LazyAdam):
    """Adam as torch.optim.Adam and AdamW: every step updates the moments of all rows, and the rows.

    It divides by sqrt(v) / sqrt(1 - beta2^t) + eps, where `lazy_adam` has sqrt(v) + eps. With numerator and denominator
    multiplied by sqrt(1 - beta2^t) this is the formula of `lazy_adam` with an eps that grows to its value.
    """

    moves_idle = True

    def coefficients(self, lr: float, t: int) -> tuple[float, ...]:
        step_size, beta1, beta2, eps = super().coefficients(lr, t)
        return step_size, beta1, beta2, eps * (1 - beta2**t) ** 0.5

    def fades_after(self, dtype: torch.dtype) -> int | None:
        """The ratio of an idle update to the one before is beta1 / sqrt(beta2) or less."""
        ratio = self.beta1 / self.beta2**0.5 if self.beta2 else math.inf
        if ratio >= 1:
            return None
        log_precision = -math.log(torch.finfo(dtype).eps) + 6  # 400 times below a rounding
        return 1 + math.ceil(log_precision / -math.log(ratio)) if ratio else 1

    @property
    def idle_decay(self) -> tuple[float, ...]:
        return self.beta1, self.beta2
