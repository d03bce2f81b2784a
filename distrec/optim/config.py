"""What a user can say about the optimizer: rule, learning rate, decay and schedule; and what does not combine."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from distrec.core.config import Section
from distrec.core.errors import UserError
from distrec.optim.rules import RULES


class DecayConfig(Section):
    """Weight decay: which rows it reaches, how it enters, how strong it is."""

    scope: Literal["none", "in_batch", "full"] = "none"
    """Which rows decay at a step: none; in_batch, those in the batch; full, the whole table at no more cost."""

    coupling: Literal["decoupled", "l2"] = "decoupled"
    """decoupled: w <- (1 - lr * strength) w, then the rule. l2: strength * w is added to the gradient.
    With rule sgd the two are the same."""

    strength: float = Field(default=0.0, ge=0)
    """The decay strength lambda; lr * strength must be below 1."""

    users: float | None = Field(default=None, ge=0)
    """The strength for the table of users; null: as `strength` says."""

    items: float | None = Field(default=None, ge=0)
    """The strength for the table of items; null: as `strength` says."""

    def strength_of(self, table: str) -> float:
        """The strength for one table."""
        own = {"users": self.users, "items": self.items}.get(table)
        return self.strength if own is None else own

    @property
    def strongest(self) -> tuple[str, float]:
        """The key with the highest strength, and this strength."""
        given = {"strength": self.strength, "users": self.users or 0.0, "items": self.items or 0.0}
        return max(given.items(), key=lambda pair: pair[1])


class ScheduleConfig(Section):
    """The learning rate over the steps of a run; it never exceeds `lr`."""

    name: Literal["constant", "linear", "cosine", "step"] = "constant"
    """The shape after the warm-up: constant; linear or cosine, to final_fraction; step, by factor every so often."""

    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the rate rises linearly to lr; step t of them has lr * t / warmup_steps."""

    final_fraction: float = Field(default=0.0, ge=0, le=1)
    """For linear and cosine: where the rate ends, as a part of lr. It is reached just after the last step, so that the
    last step still learns."""

    every_steps: int = Field(default=1000, ge=1)
    """For step: how many steps, counted from the end of the warm-up, keep one rate."""

    factor: float = Field(default=0.5, gt=0, le=1)
    """For step: what the rate is multiplied by each time."""


class OptimConfig(Section):
    """The sparse-aware optimizer of one run."""

    rule: str = "lazy_adam"
    """How a gradient changes its row: sgd, momentum (SGD with momentum), adagrad, rowwise_adagrad (one accumulator a
    row), lazy_adam (Adam whose moments move only with their row), or adam (moments of all rows move at each step)."""

    lr: float = Field(default=1e-3, gt=0)
    """The learning rate at its peak."""

    beta1: float = Field(default=0.9, ge=0, lt=1)
    """For lazy_adam and adam: what the first moment keeps at an update."""

    beta2: float = Field(default=0.999, ge=0, lt=1)
    """For lazy_adam and adam: what the second moment keeps at an update."""

    eps: float = Field(default=1e-8, gt=0)
    """For the rules that divide by a root: added to the root in the denominator."""

    momentum: float = Field(default=0.9, ge=0, lt=1)
    """For momentum: what the sum of past gradients keeps at a step."""

    decay: DecayConfig = DecayConfig()
    """Weight decay."""

    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over the run."""

    idle: Literal["lazy", "sweep"] = "lazy"
    """When rows outside the batch take what they miss (decay, momentum): lazy, as soon as they are read, which is the
    same and costs less; sweep, at each step, for models that read the whole table at each step anyway."""

    kernels: Literal["auto", "reference", "numba", "triton"] = "auto"
    """What takes the steps: numba, compiled loops for CPUs; triton, compiled programs for GPUs; reference, plain torch
    on any device; auto, numba on CPUs, triton on GPUs where it is installed (3.6 or newer), reference elsewhere."""

    @field_validator("rule")
    @classmethod
    def _known_rule(cls, rule: str) -> str:
        RULES[rule]
        return rule

    @model_validator(mode="after")
    def _combines(self) -> Self:
        reason = refusal(self)
        if reason is not None:
            raise UserError(reason)
        return self


def refusal(config: OptimConfig) -> str | None:
    """Why this combination of settings is refused, and what to do instead; None where it is sound."""
    decay, (key, strongest) = config.decay, config.decay.strongest
    if decay.scope == "none" and strongest > 0:
        return (
            f"decay.{key} is {strongest:g}, but decay.scope none decays nothing; "
            f"choose scope in_batch or full, or set {key} to 0"
        )
    if config.lr * strongest >= 1:  # no schedule exceeds lr, so its peak decides
        return (
            f"lr * decay.{key} is {config.lr * strongest:g} and must be below 1: "
            "a step would shrink a row to nothing or turn its sign; lower one of them"
        )
    return None
