"""Update rules: how a gradient changes its row.

To add one, write a class with `@RULES.register(NAME)`; configuration and `SparseOptimizer` find it by this name. The
compiled kernels, in `kernels/numba/optimizer.py` and `kernels/triton/optimizer_programs.py`, have the update of a row
again.
"""

import math

import torch
from torch import Tensor

from distrec.core.huge_pages import zeros
from distrec.core.registry import Registry
from distrec.kernels.optimizer import UpdateRule

RULES: Registry[type[UpdateRule]] = Registry("optimizer rule")


def _zeros(rows_VD: Tensor, shape: tuple[int, ...]) -> Tensor:
    return zeros(shape, torch.float32 if rows_VD.dtype == torch.bfloat16 else rows_VD.dtype, rows_VD.device)


@RULES.register("sgd")
class SGD(UpdateRule):
    """w <- w - lr g."""

    l2_is_decoupled = True

    def coefficients(self, lr: float, t: int) -> tuple[float, ...]:
        return (lr,)

    def change(self, local_U: Tensor, grad_UD: Tensor, *coefficients: float) -> Tensor:
        (lr,) = coefficients
        return grad_UD * lr


@RULES.register("momentum")
class Momentum(UpdateRule):
    """b <- mu b + g;  w <- w - lr b, b from 0: torch.optim.SGD(momentum=mu), for every row, touched or not."""

    hyperparameters = ("momentum",)
    moves_idle = True

    def __init__(self, rows_VD: Tensor, momentum: float) -> None:
        self.momentum = momentum
        self.slots = {"buffer": _zeros(rows_VD, rows_VD.shape)}

    def coefficients(self, lr: float, t: int) -> tuple[float, ...]:
        return lr, self.momentum

    def change(self, local_U: Tensor, grad_UD: Tensor, *coefficients: float) -> Tensor:
        lr, momentum = coefficients
        buffer_UD = self.slots["buffer"].index_select(0, local_U).mul_(momentum).add_(grad_UD)
        self.slots["buffer"].index_copy_(0, local_U, buffer_UD)
        return buffer_UD.mul_(lr)


@RULES.register("adagrad")
class Adagrad(UpdateRule):
    """s <- s + g^2;  w <- w - lr g / (sqrt(s) + eps), s from 0 (Duchi et al. 2011), as torch.optim.Adagrad."""

    hyperparameters = ("eps",)

    def __init__(self, rows_VD: Tensor, eps: float) -> None:
        self._eps = eps
        self.slots = {"sum": _zeros(rows_VD, rows_VD.shape)}

    def coefficients(self, lr: float, t: int) -> tuple[float, ...]:
        return lr, self._eps

    def change(self, local_U: Tensor, grad_UD: Tensor, *coefficients: float) -> Tensor:
        lr, eps = coefficients
        sum_UD = self.slots["sum"].index_select(0, local_U).addcmul_(grad_UD, grad_UD)
        self.slots["sum"].index_copy_(0, local_U, sum_UD)
        return (grad_UD * lr).div_(sum_UD.sqrt_().add_(eps))


@RULES.register("rowwise_adagrad")
class RowwiseAdagrad(Adagrad):
    """s <- s + mean of g^2 over the row;  w <- w - lr g / (sqrt(s) + eps), one s a row, from 0.

    FBGEMM's EXACT_ROWWISE_ADAGRAD, without its options: at D = 64, one sixty-fourth of Adagrad's memory.
    """

    def __init__(self, rows_VD: Tensor, eps: float) -> None:
        self._eps = eps
        self.slots = {"sum": _zeros(rows_VD, rows_VD.shape[:1])}

    def change(self, local_U: Tensor, grad_UD: Tensor, *coefficients: float) -> Tensor:
        lr, eps = coefficients
        sum_U = self.slots["sum"].index_select(0, local_U).add_(grad_UD.square().mean(1))
        self.slots["sum"].index_copy_(0, local_U, sum_U)
        return grad_UD * (lr / sum_U.sqrt_().add_(eps)).unsqueeze(1)


@RULES.register("lazy_adam")
class LazyAdam(UpdateRule):
    """Adam (Kingma and Ba 2015) that updates only the moments of touched rows, as torch.optim.SparseAdam.

    m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2;
    w <- w - lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps), with t the step of the run, not of the row.
    """

    hyperparameters = ("beta1", "beta2", "eps")

    def __init__(self, rows_VD: Tensor, beta1: float, beta2: float, eps: float) -> None:
        self.beta1, self.beta2, self._eps = beta1, beta2, eps
        self.slots = {name: _zeros(rows_VD, rows_VD.shape) for name in ("moment1", "moment2")}

    def coefficients(self, lr: float, t: int) -> tuple[float, ...]:
        step_size = lr * (1 - self.beta2**t) ** 0.5 / (1 - self.beta1**t)
        return step_size, self.beta1, self.beta2, self._eps

    def change(self, local_U: Tensor, grad_UD: Tensor, *coefficients: float) -> Tensor:
        step_size, beta1, beta2, eps = coefficients
        moment1_UD = self.slots["moment1"].index_select(0, local_U).lerp_(grad_UD, 1 - beta1)
        self.slots["moment1"].index_copy_(0, local_U, moment1_UD)
        moment2_UD = self.slots["moment2"].index_select(0, local_U).mul_(beta2)
        moment2_UD.addcmul_(grad_UD, grad_UD, value=1 - beta2)
        self.slots["moment2"].index_copy_(0, local_U, moment2_UD)
        return moment1_UD.mul_(step_size).div_(moment2_UD.sqrt_().add_(eps))


@RULES.register("adam")
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
