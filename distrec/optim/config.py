"""Configuration of the optimizer: rule, learning rate, decay, schedule and kernels, and what does not combine."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from distrec.core.section import Section
from distrec.optim.rules import RULES


class DecayConfig(Section):
    """Weight decay: scope, coupling and strength."""

    scope: Literal["none", "in_batch", "occurrences", "full"] = "none"
    """Rows that decay at a step: none; in_batch, the rows in the batch; occurrences, the same, each by its occurrences
    in the pairs of the batch, all drawn negatives included, over the number of pairs (with coupling l2); full, the
    whole table at the same cost."""

    coupling: Literal["decoupled", "l2"] = "decoupled"
    """decoupled: w <- (1 - lr * strength) w, then the rule. l2: strength * w is added to the gradient.
    With rule sgd both are the same."""

    strength: float = Field(default=0.0, ge=0)
    """Decay strength lambda; lr * strength must be below 1."""

    tables: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Strength by table, where it differs from `strength`: {users: 0.1}. Beside tables, dense names the parameters of
    the model's networks."""

    def unused(self) -> set[str]:
        return {"coupling"} if self.scope == "none" else set()

    def strength_of(self, table: str, default: float | None = None) -> float:
        """Return the strength for one table; `default` is the one that the specification of the table gives."""
        return self.tables.get(table, self.strength if default is None else default)


class ScheduleConfig(Section):
    """Learning rate over the steps of a run; it never exceeds `lr`."""

    name: Literal["constant", "linear", "cosine", "step", "plateau"] = "constant"
    """Shape after the warm-up: constant; linear or cosine, down to final_fraction; step, times factor every
    every_steps; plateau, times factor where `train.watch` has not become better for `patience` evaluations, down to
    final_fraction (torch's ReduceLROnPlateau)."""

    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the rate rises linearly to lr: step t has lr * t / warmup_steps."""

    final_fraction: float = Field(default=0.0, ge=0, le=1)
    """For linear, cosine and plateau: final rate as a fraction of lr. Linear and cosine reach it one step after the
    last, so that the last step has a positive rate."""

    every_steps: int = Field(default=1000, ge=1)
    """For step: number of steps with the same rate, counted from the end of the warm-up."""

    factor: float = Field(default=0.5, gt=0, le=1)
    """For step and plateau: factor by which the rate is multiplied."""

    patience: int = Field(default=10, ge=0)
    """For plateau: evaluations in a row without a better value that are tolerated; after one more the rate is lower."""

    def unused(self) -> set[str]:
        used = {
            "linear": {"final_fraction"},
            "cosine": {"final_fraction"},
            "step": {"every_steps", "factor"},
            "plateau": {"factor", "patience", "final_fraction"},
        }
        return {"final_fraction", "every_steps", "factor", "patience"} - used.get(self.name, set())


class OptimConfig(Section):
    """The sparse-aware optimizer of one run."""

    rule: str = "lazy_adam"
    """Update rule: sgd, momentum (SGD with momentum), adagrad, rowwise_adagrad (one accumulator a row), lazy_adam
    (Adam that updates only the moments of touched rows), or adam (moments of all rows are updated at each step)."""

    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""

    beta1: float = Field(default=0.9, ge=0, lt=1)
    """For lazy_adam and adam: decay rate of the first moment."""

    beta2: float = Field(default=0.999, ge=0, lt=1)
    """For lazy_adam and adam: decay rate of the second moment."""

    eps: float = Field(default=1e-8, gt=0)
    """For Adagrad and Adam rules: added to the square root in the denominator."""

    momentum: float = Field(default=0.9, ge=0, lt=1)
    """For momentum: factor of the momentum buffer at each step."""

    decay: DecayConfig = DecayConfig()
    """Weight decay."""

    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate over the run."""

    clip_norm: float | None = Field(default=None, gt=0)
    """Largest L2 norm of the gradient of the loss over all rows and parameters of a step; a larger gradient is scaled
    down to it, before weight decay. null: none."""

    idle: Literal["lazy", "sweep"] = "lazy"
    """When rows outside the batch are updated (decay, momentum): lazy, when they are next read, with the same result
    at less cost; sweep, at each step. A model that reads the whole graph updates all rows at each step in any case, and
    steps that stay on a GPU those that momentum or l2 decay moves: docs/gpu.md says with how many rows."""

    kernels: Literal["auto", "reference", "numba", "triton"] = "auto"
    """Implementation of a step: numba, compiled loops for CPUs; triton, compiled programs for GPUs; reference, plain
    torch on any device; auto, numba on CPUs, triton on GPUs if it is installed (3.6 or newer), else reference."""

    def unused(self) -> set[str]:
        return {"beta1", "beta2", "eps", "momentum"} - set(RULES[self.rule].hyperparameters)

    @field_validator("rule")
    @classmethod
    def _known_rule(cls, rule: str) -> str:
        RULES[rule]
        return rule

    @model_validator(mode="after")
    def _check_decay(self) -> Self:
        decay = self.decay
        strengths = {"strength": decay.strength} | {f"tables.{table}": value for table, value in decay.tables.items()}
        key, strongest = max(strengths.items(), key=lambda pair: pair[1])
        if decay.scope == "none" and strongest > 0:
            raise ValueError(
                f"decay.{key} is {strongest:g}, but decay.scope is none and nothing decays; "
                f"choose scope in_batch or full, or set {key} to 0"
            )
        if decay.scope == "occurrences" and decay.coupling != "l2":
            raise ValueError("decay.scope=occurrences is a penalty in the loss: set decay.coupling=l2")
        if self.lr * strongest >= 1:  # no schedule exceeds lr, so its peak decides
            raise ValueError(
                f"lr * decay.{key} is {self.lr * strongest:g} and must be below 1: "
                "a step would set a row to zero or flip its sign; lower one of them"
            )
        return self
