"""Dense reference of the optimizer, the oracle: its formulas applied to every row of a table at each step."""

import torch
from torch import Tensor

from distrec.optim.config import OptimConfig
from distrec.optim.schedule import learning_rate


class DenseReference:
    """Any rule (a method of its name), decay and schedule over a whole table, (V, D), in the dtype of its rows."""

    def __init__(
        self, rows_VD: Tensor, config: OptimConfig, total_steps: int, table: str = "items", decay: float | None = None
    ) -> None:
        self.rows_VD = rows_VD.clone()
        self.config = config
        self.total_steps = total_steps
        self.strength = config.decay.strength_of(table, decay)
        self.t = 0
        self.first_VD = torch.zeros_like(rows_VD)  # m of Adam, buffer of momentum
        self.second_VD = torch.zeros_like(rows_VD)  # v of Adam, sum of squares of Adagrad

    def step(self, rows_U: Tensor, grad_UD: Tensor) -> None:
        """Take one step in which the rows `rows_U` (unique) have the gradients `grad_UD` and all others have none."""
        self.t += 1
        lr = learning_rate(self.config.schedule, self.config.lr, self.t, self.total_steps)
        grads = dict(zip(rows_U.tolist(), grad_UD, strict=True))
        for row in range(len(self.rows_VD)):
            self.step_row(row, grads.get(row), lr)

    def step_row(self, row: int, grad: Tensor | None, lr: float) -> None:
        """Take one step of one row; a row outside the batch has no gradient."""
        decay, strength = self.config.decay, self.strength
        if strength > 0 and (decay.scope == "full" or (decay.scope == "in_batch" and grad is not None)):
            if decay.coupling == "decoupled":
                self.rows_VD[row] = (1 - lr * strength) * self.rows_VD[row]
            else:
                penalty = strength * self.rows_VD[row]
                grad = penalty if grad is None else grad + penalty
        if grad is None and self.config.rule in ("momentum", "adam"):
            grad = torch.zeros_like(self.rows_VD[row])
        if grad is not None:
            self.rows_VD[row] = self.rows_VD[row] - lr * getattr(self, self.config.rule)(row, grad)

    def sgd(self, row: int, grad: Tensor) -> Tensor:
        """Return g."""
        return grad

    def momentum(self, row: int, grad: Tensor) -> Tensor:
        """Update b <- mu b + g and return b."""
        self.first_VD[row] = self.config.momentum * self.first_VD[row] + grad
        return self.first_VD[row]

    def adagrad(self, row: int, grad: Tensor) -> Tensor:
        """Update s <- s + g^2 and return g / (sqrt(s) + eps)."""
        self.second_VD[row] = self.second_VD[row] + grad**2
        return grad / (self.second_VD[row].sqrt() + self.config.eps)

    def rowwise_adagrad(self, row: int, grad: Tensor) -> Tensor:
        """Update s <- s + mean(g^2) and return g / (sqrt(s) + eps). All elements of second_VD[row] hold the one s."""
        self.second_VD[row] = self.second_VD[row] + (grad**2).sum() / len(grad)
        return grad / (self.second_VD[row].sqrt() + self.config.eps)

    def lazy_adam(self, row: int, grad: Tensor) -> Tensor:
        """Update m and v and return sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps)."""
        self.update_moments(row, grad)
        correction: float = (1 - self.config.beta2**self.t) ** 0.5 / (1 - self.config.beta1**self.t)
        return correction * self.first_VD[row] / (self.second_VD[row].sqrt() + self.config.eps)

    def adam(self, row: int, grad: Tensor) -> Tensor:
        """Update m and v and return (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)."""
        self.update_moments(row, grad)
        mean = self.first_VD[row] / (1 - self.config.beta1**self.t)
        square = self.second_VD[row] / (1 - self.config.beta2**self.t)
        return mean / (square.sqrt() + self.config.eps)

    def update_moments(self, row: int, grad: Tensor) -> None:
        """Update m <- b1 m + (1 - b1) g and v <- b2 v + (1 - b2) g^2."""
        b1, b2 = self.config.beta1, self.config.beta2
        self.first_VD[row] = b1 * self.first_VD[row] + (1 - b1) * grad
        self.second_VD[row] = b2 * self.second_VD[row] + (1 - b2) * grad**2
