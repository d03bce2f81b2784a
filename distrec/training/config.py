"""Configuration of a run: one section per part, and the checks that involve several sections."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from distrec.core.config import given, load, split_words
from distrec.core.section import OneOf, Section, expand_user
from distrec.data.config import DataConfig
from distrec.evaluation.config import EvalConfig
from distrec.evaluation.metrics import check_user_metric
from distrec.losses import Loss, losses
from distrec.models import EmbeddingConfig, ModelConfig, SolverConfig, models
from distrec.optim.config import OptimConfig
from distrec.optim.dense import DENSE
from distrec.sampling.batch import BatchNeeds
from distrec.sampling.config import SamplingConfig
from distrec.sharding.table import TableSpec
from distrec.tracking.config import TrackingConfig

_MANY_NEGATIVES = 16


class TrainConfig(Section):
    """The training loop and the resources of its workers."""

    workers: int = Field(2, ge=1)
    """Number of worker processes W. It changes the speed, not the results."""
    epochs: int = Field(10, ge=1)
    """Passes over the training interactions."""
    batch_size: int = Field(2048, ge=1)
    """Pairs in a step, over all workers."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the workers; `auto` is CUDA if the cluster has a GPU for each worker, else the CPU."""
    threads: int = Field(0, ge=0)
    """CPU threads of each worker; 0 divides the cores of a machine among its workers."""
    send_bfloat16: bool = False
    """Send item representations to the workers as bfloat16, which halves the traffic. Gradients stay float32."""
    checkpoint_every: int = Field(1, ge=1)
    """Epochs between checkpoints; the last epoch always writes one, and each that is the best so far by `watch`."""
    patience: int = Field(0, ge=0)
    """Stop after this many evaluations on the validation part in a row without a better value of `watch`; 0: train all
    epochs."""
    watch: str | None = None
    """Validation metric, such as ndcg@20, by which the best epoch is kept and evaluated on the test part. null: with
    `patience` NDCG at the first of eval.k; without, nothing is watched and the last epoch is evaluated."""

    @field_validator("watch")
    @classmethod
    def _metric(cls, watch: str | None) -> str | None:
        if watch:
            check_user_metric(watch)
        return watch

    stream: Literal["auto", "ray", "thread"] = "auto"
    """Where batches are drawn, ahead of each worker: `ray`, in processes of Ray Data; `thread`, in a thread of the
    worker; `auto`, in a thread if a worker on the CPU draws 16 or more negatives for each pair, else in Ray Data. The
    batches are the same."""
    stream_actors: int = Field(0, ge=0)
    """Ray Data processes for each worker; 0 is one for a worker on the CPU, and for a worker on a GPU as many as the
    cluster has cores for, up to 8, or up to 2 where negatives are drawn on the GPU."""
    capture: bool = True
    """On a GPU, draw negatives there and replay steps as CUDA graphs, where the configuration allows it: the log says
    if not, and docs/gpu.md why. false: draw on the CPU, and launch each operation from there."""
    deterministic: bool = False
    """On a GPU, add gradients in a fixed order, so that a run repeats its digits; slower. On a CPU it always does."""
    look_ahead_mib: int = Field(64, ge=16)
    """Bound on the batches prepared ahead of each worker, MiB. With Ray Data it applies to each process, and up to
    three blocks of 32 MiB in progress come on top."""
    wait_s: int = Field(3600, ge=0)
    """Seconds to wait for CPUs and GPUs of a cluster that other runs use, before the run ends with an error."""


class RunConfig(Section):
    """The run folder, the seed, and modules of your own."""

    dir: Path | None = None
    """Run folder. Default: runs/NAME, NAME being the name of the configuration file, distrec without one; or the next
    free of runs/NAME-2, runs/NAME-3, ..."""
    seed: int = 0
    """Seed of initial rows, shuffles and negatives."""
    resume: bool = False
    """Continue from the last checkpoint in the run folder (default: of the latest run of that name)."""
    imports: Annotated[tuple[str, ...], BeforeValidator(split_words)] = ()
    """Modules of your own, imported by every process before the configuration is read, so that losses and models that
    they register can be named."""


class Config(Section):
    """Everything a run depends on."""

    data: DataConfig = DataConfig()
    model: Annotated[ModelConfig, OneOf(models)] = Field(default_factory=lambda: models["mf"]())
    """Model trained by gradient descent, or solver."""
    loss: Annotated[Loss, OneOf(losses)] = Field(default_factory=lambda: losses["ssm"]())
    """Loss that gradient descent minimises."""
    sampling: SamplingConfig = SamplingConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    run: RunConfig = RunConfig()
    tracking: TrackingConfig = TrackingConfig()

    def unused(self) -> set[str]:
        return {*self.model.ignores, *(() if self._reads_negatives else ("sampling",))}

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        model, train = self.model, self.train
        sections = tuple(f"{name}." for name in model.ignores)
        if ignored := [key for key in given(self) if f"{key}.".startswith(sections)]:
            does = "does nothing; remove it" if len(ignored) == 1 else "do nothing; remove them"
            text = f"{', '.join(ignored)} {does}"
            raise ValueError(f"model.name={model.name} is not trained by gradient descent: {text}")
        if self.watched and not self.eval.every:
            raise ValueError("train.patience and train.watch need evaluations: set eval.every to 1 or more")
        if "train.batch_size" not in model.ignores and train.batch_size < train.workers:
            raise ValueError(f"train.batch_size={train.batch_size} is less than train.workers={train.workers}")
        if "loss" not in model.ignores:
            self._check_loss()
        if self.optim.schedule.name == "plateau" and not self.watched:
            raise ValueError("optim.schedule.name=plateau follows a validation metric: set train.watch, as ndcg@20")
        if "optim" not in model.ignores:
            tables = [*(spec.name for spec in self.table_specs), DENSE]
            if unknown := [name for name in self.optim.decay.tables if name not in tables]:
                raise ValueError(f"optim.decay.tables: no table {', '.join(unknown)}; known: {', '.join(tables)}")
        return self

    def _check_loss(self) -> None:
        loss, similarity = self.loss, getattr(self.model, "similarity", None)
        if loss.similarity not in (None, similarity):
            raise ValueError(
                f"loss.name={loss.name} is defined on {loss.similarity} similarity, not {similarity}: "
                f"set model.similarity={loss.similarity}"
            )
        if "user_logit_B" in loss.needs() and not getattr(self.model, "logits", False):
            raise ValueError(f"loss.name={loss.name} reads logits of the model: set model.name=macr")
        if self.optim.decay.scope == "occurrences" and "catalogue" in loss.needs():
            raise ValueError(
                f"optim.decay.scope=occurrences: loss.name={loss.name} reads all items, not those of pairs"
            )
        model = self.model
        shortens = isinstance(model, EmbeddingConfig) and model.user_dropout and not model.user_dropout_before_norm
        if "batch" in loss.needs() and loss.similarity == "cosine" and shortens:
            raise ValueError(
                f"loss.name={loss.name} is defined on rows of unit length: with model.user_dropout set "
                "model.user_dropout_before_norm=true"
            )
        if self._reads_negatives:
            self._check_sampling()

    def _check_sampling(self) -> None:
        loss = self.loss
        if self.sampling.negatives == 0:
            raise ValueError(f"loss.name={loss.name} needs negatives: sampling.negatives must be at least 1")
        if loss.draws_known_positives:
            wrong = {
                "distribution": self.sampling.distribution != "uniform",
                "reject": self.sampling.reject,
                "hardest": self.sampling.hardest > 0,
            }
            if keys := [f"sampling.{key}" for key, is_wrong in wrong.items() if is_wrong]:
                raise ValueError(
                    f"loss.name={loss.name} corrects for the known positives among negatives that are drawn uniformly "
                    f"from all items; set sampling.distribution=uniform, reject=false and hardest=0 (not so: "
                    f"{', '.join(keys)})"
                )
        if "log_q_BN" in loss.needs() and self.sampling.hardest:
            raise ValueError(
                f"loss.name={loss.name} corrects for the sampling probability q of negatives (log_q), which the "
                "hardest of a pool do not have: set sampling.hardest=0"
            )

    def changed(self, **sections: Mapping[str, object]) -> "Config":
        """Return the configuration with some keys changed, unchecked: `changed(model={"dim": 32})`."""
        updates = {name: getattr(self, name).model_copy(update=keys) for name, keys in sections.items()}
        return self.model_copy(update=updates)

    @property
    def epochs(self) -> int:
        """Epochs of the run: `train.epochs`, or 1 for a solver that is done after one."""
        return 1 if isinstance(self.model, SolverConfig) and self.model.one_epoch else self.train.epochs

    @property
    def table_specs(self) -> tuple[TableSpec, ...]:
        """Tables of the model and of the loss."""
        assert isinstance(self.model, EmbeddingConfig), self.model
        return (*self.model.tables(), *self.loss.tables())

    def width(self, entity: str) -> int:
        """Return the columns of all tables of users or of items."""
        return sum(spec.width for spec in self.table_specs if spec.entity == entity)

    @property
    def watched(self) -> str | None:
        """Validation metric by which the best epoch is kept, None if none is."""
        return self.train.watch or (f"ndcg@{self.eval.k[0]}" if self.train.patience else None)

    @property
    def _reads_negatives(self) -> bool:
        # Extra positives are drawn uniformly: `sampling` has no key for them.
        return bool({"negative_BN", "negative_norm2_BN"} & set(self.loss.needs()))

    @property
    def batch_needs(self) -> BatchNeeds:
        """What the batches hold beyond positives and negatives.

        A loss that reads extra_BM has their number M in its option `extra_positives`, a model that reads history the
        number H of items in its option `history`.
        """
        reads = self.loss.needs()
        extra = getattr(self.loss, "extra_positives", 0) if "extra_BM" in reads else 0
        history, dropout = (getattr(self.model, name, 0) for name in ("history", "user_dropout"))
        return BatchNeeds("log_q_BN" in reads, extra, history, dropout > 0)

    @property
    def stream_backend(self) -> str:
        """`train.stream` of a worker on the CPU with `auto` resolved.

        Gowalla, one worker on two cores: 800 negatives per pair took 62 ms a step with a thread and 68 with Ray Data,
        64 per pair 30 and 33, and the worker needed 150 MiB less with a thread. Shared negatives and one negative per
        pair made no difference, and Ray Data does not compete with the trainer for the interpreter lock.
        """
        if self.train.stream != "auto":
            return self.train.stream
        sampling = self.effective_sampling
        return "thread" if not sampling.shared and sampling.negatives >= _MANY_NEGATIVES else "ray"

    @property
    def effective_sampling(self) -> SamplingConfig:
        """`sampling`, without negatives for a loss that reads none."""
        if self._reads_negatives:
            return self.sampling
        return self.sampling.model_copy(update={"distribution": "uniform", "negatives": 0})


def load_config(
    path: str | Path | None = None, overrides: Sequence[str] = (), note: Callable[[str], object] = warnings.warn
) -> Config:
    """Load and validate the configuration of a run, after importing the modules that its `run.imports` names.

    Args:
        path: YAML file with the keys that differ from the defaults; None for the defaults.
        overrides: `dotted.key=value` strings: text and paths as they are, other values in YAML. Later ones win. One
            that names another part than the file (loss.name=bpr) drops the options that the file gives to the former
            part.
        note: called with a message for each option so dropped.

    Raises:
        UserError: a missing or broken file, an unknown key (the message lists the nearest known ones), a bad value.
    """
    return load(Config, None if path is None else expand_user(path), overrides, note)
