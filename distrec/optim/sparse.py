"""Sparse-aware optimizer: a step costs as much as the rows in the batch, and weight decay may reach the whole table."""

import numpy as np
import torch
from torch import Tensor

from distrec.core.errors import UserError
from distrec.kernels.bfloat16 import Bfloat16Kernels
from distrec.kernels.dispatch import kernels_for
from distrec.kernels.optimizer import COEFFICIENTS, Decay, padded
from distrec.optim.config import OptimConfig
from distrec.optim.decay import FullDecay
from distrec.optim.deferred import DeferredUpdate
from distrec.optim.momentum import ClosedFormMomentum
from distrec.optim.replay import Replay
from distrec.optim.rules import RULES, Momentum
from distrec.optim.schedule import learning_rate
from distrec.sharding.table import Table

_RESOLUTION = 6e-8  # relative: smaller changes may round to none in float32


def moves_all_rows(config: OptimConfig, strength: float) -> bool:
    """Return whether a step changes the rows outside the batch by more than a factor that is common to all.

    They are updated when they are next read; with `optim.idle=sweep`, and by the steps of `look_ahead`, at each step.
    """
    decay, rule = config.decay, RULES[config.rule]
    by_gradient = decay.scope == "full" and strength > 0 and decay.coupling == "l2" and not rule.l2_is_decoupled
    return rule.moves_idle or by_gradient


class SparseOptimizer:
    """Updates one shard of one table. `dense_reference.DenseReference` is the same as a sweep over all rows."""

    def __init__(
        self, table: Table, config: OptimConfig, total_steps: int, all_rows: bool = False, ahead: bool = False
    ) -> None:
        """Allocate the accumulators on the table's device.

        Sets `table.deferred` if idle rows change: from then on, read rows through the table, not from `stored_VD`.

        Args:
            table: the shard.
            config: rule, decay, schedule and kernels.
            total_steps: steps of the whole run, for the schedule.
            all_rows: the batch of every step is all rows, so that none is updated later.
            ahead: all steps are those of `look_ahead`, which update all rows if any outside the batch move.

        Raises:
            UserError: the kernels do not run on the table's device.
        """
        self._table = table
        self._config = config
        self._total_steps = total_steps
        self.t = 0
        """Steps taken."""
        self.lr_factor = 1.0
        """Factor of the learning rate, beside the schedule: that of `plateau`."""
        device, dtype = table.stored_VD.device, table.stored_VD.dtype
        # The function must not hold the table, whose deferred updates hold the kernels: a cycle is not freed at once.
        partition, worker = table.partition, table.worker
        self._kernels = kernels_for(config.kernels, device, dtype, lambda local: partition.row(local, worker))
        rule = RULES[config.rule]
        self._rule = rule(table.stored_VD, **{name: getattr(config, name) for name in rule.hyperparameters})
        self._strength = config.decay.strength_of(table.name, table.decay)
        self._ahead = ahead
        self._all_rows = all_rows or (ahead and moves_all_rows(config, self._strength))
        self._deferred = None if self._all_rows else self._make_deferred()
        self._sweep = self._deferred is not None and config.idle == "sweep"
        assert table.deferred is None, f"table {table.name} already has an optimizer"
        table.deferred = self._deferred

    def _make_deferred(self) -> DeferredUpdate | None:
        """Return how idle rows are updated: in closed form if there is one, else by replay; None if they stay."""
        stored_VD, decay, rule = self._table.stored_VD, self._config.decay, self._rule
        strength, l2 = self._strength if decay.scope == "full" else 0.0, decay.coupling == "l2"
        if isinstance(rule, Momentum):
            return ClosedFormMomentum(rule, stored_VD, self._kernels, strength, l2)
        if rule.moves_idle or (strength > 0 and l2 and not rule.l2_is_decoupled):
            return Replay(rule, stored_VD, self._kernels, strength, l2)
        if strength > 0:
            return FullDecay(strength, self._kernels)
        return None

    @property
    def idle_rows(self) -> str:
        """How rows outside the batch are updated, as a predicate for the log."""
        if self._all_rows:
            return "are updated at each step"
        if self._deferred is None:
            return "stay as they are"
        return "are updated at each step" if self._sweep else f"are updated when read, {self._deferred.form}"

    @property
    def precision_note(self) -> str | None:
        """Return what float32 makes of a decay that it cannot resolve in one step, for the log; None if it resolves it.

        Decay by the scale is accumulated in float64.
        """
        decay, shrink = self._config.decay, self._config.lr * self._strength
        by_step = decay.coupling == "decoupled" or self._rule.l2_is_decoupled
        if (
            decay.scope == "none"
            or not by_step
            or isinstance(self._deferred, FullDecay)
            or not 0 < shrink < _RESOLUTION
        ):
            return None
        return (
            f"{self._table.name} decay by {shrink:.1e} a step, less than float32 resolves ({_RESOLUTION:.0e}): right "
            "on average where a row has a gradient, nothing where it has none"
        )

    @torch.no_grad()
    def step(self, local_U: Tensor, grad_UD: Tensor) -> None:
        """Take one step: decay first, then the rule, as in torch.optim.AdamW.

        Every worker takes every step, also without touched rows: the step counts, and full decay applies.

        Args:
            local_U: local rows, int64, in any order. They must be unique, which is not checked (sorting them would
                dominate a step): of two entries for one row one is lost. Sum the gradients of a row first.
            grad_UD: gradients of these rows as `table.read` returned them, of the same dtype.
        """
        stored_VD = self._table.stored_VD
        assert not self._ahead, "steps are those of look_ahead"
        assert local_U.dtype == torch.int64 and local_U.dim() == 1, (local_U.dtype, local_U.shape)
        assert grad_UD.shape == (len(local_U), stored_VD.shape[1]), (grad_UD.shape, local_U.shape, stored_VD.shape)
        assert grad_UD.dtype == self._table.dtype, (grad_UD.dtype, stored_VD.dtype)
        self.t += 1
        self._key_rounding(self.t)
        lr = self._learning_rate(self.t)
        scale = None if self._deferred is None else self._deferred.prepare_step(stored_VD, local_U, lr, self.t)
        decay = self._decay(lr) if scale is None else Decay()
        if len(local_U) > 0:
            coefficients = self._rule.coefficients(lr if scale is None else lr / scale, self.t)
            self._kernels.step_(stored_VD, local_U, grad_UD, decay, self._rule, coefficients)
            if self._table.bounds is not None:
                low, high = (bound / (scale or 1.0) for bound in self._table.bounds)
                stored_VD.index_copy_(0, local_U, stored_VD.index_select(0, local_U).clamp_(low, high))
        if self._sweep:
            self._table.flush()

    def steps_ahead(self, wanted: int) -> int:
        """Return how many steps, up to `wanted` and at least one, can be taken before rows must be flushed.

        Flushes them if they must be before the first.
        """
        if not isinstance(self._deferred, FullDecay):
            return wanted
        lrs = [self._learning_rate(self.t + 1 + k) for k in range(wanted)]
        steps = self._deferred.steps_to_flush(lrs)
        if not steps:
            self._key_rounding(self.t + 1)
            self._table.flush()
            steps = self._deferred.steps_to_flush(lrs)
        return max(1, steps)

    def look_ahead(self, steps: int) -> np.ndarray:
        """Count the next steps and return the coefficients that they read, (S, COEFFICIENTS) float64.

        The caller takes all of these steps by `read_ahead` and `step_ahead` before anything else is done with the
        table. There may be no more than `steps_ahead` allows.
        """
        assert self._deferred is None or isinstance(self._deferred, FullDecay), self._deferred
        coefficients_SC = np.zeros((steps, COEFFICIENTS))
        for coefficients_C in coefficients_SC:
            self.t += 1
            lr, before, scale, decay = self._learning_rate(self.t), 1.0, 1.0, Decay()
            if isinstance(self._deferred, FullDecay):
                before, scale = self._deferred.scale, self._deferred.advance(lr)
            else:
                decay = self._decay(lr)
            coefficients = self._rule.coefficients(lr / scale, self.t)
            coefficients_C[:] = before, *padded(coefficients), decay.shrink, decay.l2, self.t
        self._key_rounding(self.t)
        return coefficients_SC

    def _key_rounding(self, t: int) -> None:
        """Let rows of bfloat16 be rounded from now on by the random numbers of a step."""
        if isinstance(self._kernels, Bfloat16Kernels):
            self._kernels.step = t

    def read_ahead(self, local_R: Tensor, coefficients_SC: Tensor, index: Tensor) -> Tensor:
        """Return the rows as they are before a step of `look_ahead`, (R, D); entries -1 of a part of them are zeros.

        Args:
            local_R: local rows, int64; of the length of the shard only if entry k is k or -1.
            coefficients_SC: what `look_ahead` returned, on the device.
            index: the step's line in it, (1,).
        """
        stored_VD, scaled = self._table.stored_VD.detach(), isinstance(self._deferred, FullDecay)
        if len(local_R) != len(stored_VD):
            assert self._kernels.ahead is not None, self._kernels
            return self._kernels.ahead.read_ahead(stored_VD, local_R, coefficients_SC if scaled else None, index)
        rows_VD = stored_VD.to(self._table.dtype)
        return rows_VD * coefficients_SC.index_select(0, index)[:, :1].to(rows_VD.dtype) if scaled else rows_VD

    @torch.no_grad()
    def step_ahead(self, local_R: Tensor, grad_RD: Tensor, coefficients_SC: Tensor, index: Tensor) -> None:
        """Take a step of `look_ahead`; arguments as of `step` and `read_ahead`. Only by Triton's kernels.

        If rows outside the batch move, `local_R` has the length of the shard, with -1 for rows outside the batch where
        decay is that of the batch; it may have them elsewhere.
        """
        assert self._kernels.ahead is not None, self._kernels
        stored_VD, all_decay = self._table.stored_VD, self._config.decay.scope == "full"
        assert not self._all_rows or len(local_R) == len(stored_VD), (len(local_R), len(stored_VD))
        self._kernels.ahead.step_ahead_(
            stored_VD, local_R, grad_RD, self._rule, coefficients_SC, index, self._all_rows, all_decay
        )

    def _learning_rate(self, t: int) -> float:
        return learning_rate(self._config.schedule, self._config.lr, t, self._total_steps) * self.lr_factor

    def _decay(self, lr: float) -> Decay:
        """Return the decay of touched rows at a step, if they are up to date."""
        if self._config.decay.scope not in ("in_batch", "full"):
            return Decay()
        if self._config.decay.coupling == "l2":
            return Decay(l2=self._strength)
        return Decay(shrink=lr * self._strength)

    def state(self) -> dict[str, Tensor | int]:
        """Return what a checkpoint must save beside the rows.

        Tensors are (V_local, ...), in the order of the shard's rows, and are saved and resharded like them. They are
        the live accumulators, not copies. Integers belong to the run and are the same on every worker.

        Call `table.flush()` before saving the rows that belong to it; deferred updates then have nothing to save.
        """
        assert self._deferred is None or not self._deferred.has_pending, (
            f"flush table {self._table.name} before saving its optimizer"
        )
        return {"t": self.t, **self._rule.slots}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor | int]) -> None:
        """Resume from a state. The caller has copied the flushed rows saved with it to `table.stored_VD`.

        Raises:
            UserError: the state was saved by another rule.
        """
        slots = self._rule.slots
        if state.keys() != {"t", *slots}:
            raise UserError(
                f"the saved optimizer state holds {', '.join(sorted(state))}; rule {self._config.rule} of table "
                f"{self._table.name} needs {', '.join(sorted({'t', *slots}))}; resume with the rule of the saved run"
            )
        for name, slot in slots.items():
            saved = state[name]
            assert isinstance(saved, Tensor) and saved.shape == slot.shape, (name, saved, slot.shape)
            slot.copy_(saved)
        self.t = int(state["t"])
        if self._deferred is not None:
            self._deferred.reset()
