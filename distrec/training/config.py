"""Configuration of a run: one section per part, and the checks that involve several sections."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from distrec.core.config import Section, load
from distrec.data.config import DataConfig
from distrec.evaluation.config import EvalConfig
from distrec.losses import TAKES_LOG_Q, catalogue_losses, losses
from distrec.losses.config import LossConfig
from distrec.models import models
from distrec.models.config import ModelConfig
from distrec.optim.config import OptimConfig
from distrec.sampling.config import SamplingConfig
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
    """Epochs between checkpoints; the last epoch always writes one."""
    stream: Literal["auto", "ray", "thread"] = "auto"
    """Where batches are drawn, ahead of each worker: `ray`, in processes of Ray Data; `thread`, in a thread of the
    worker; `auto`, in a thread if a worker on the CPU draws 16 or more negatives for each pair, else in Ray Data. The
    batches are the same."""
    stream_actors: int = Field(0, ge=0)
    """Ray Data processes for each worker; 0 is one for a worker on the CPU, and for a worker on a GPU as many as the
    cluster has cores for, up to 8."""
    look_ahead_mib: int = Field(32, ge=16)
    """Bound on the batches prepared ahead of each worker, MiB. With Ray Data it applies to each process, and up to
    three blocks of 32 MiB in progress come on top."""


class RunConfig(Section):
    """The run folder and the seed."""

    dir: Path | None = None
    """Run folder. Default: runs/NAME, NAME being the name of the configuration file, or the next free of runs/NAME-2,
    runs/NAME-3, ..."""
    seed: int = 0
    """Seed of initial rows, shuffles and negatives."""
    resume: bool = False
    """Continue from the last checkpoint in the run folder (default: of the latest run of that name)."""


class Config(Section):
    """Everything a run depends on."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    sampling: SamplingConfig = SamplingConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    run: RunConfig = RunConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _check_combinations(self) -> "Config":
        known, loss, train = [*losses, *catalogue_losses], self.loss, self.train
        if loss.name not in known:
            raise ValueError(f"loss.name: unknown loss {loss.name!r}; known: {', '.join(sorted(known))}")
        models[self.model.name]
        if train.batch_size < train.workers:
            raise ValueError(f"train.batch_size={train.batch_size} is less than train.workers={train.workers}")
        if loss.log_q and loss.name not in TAKES_LOG_Q:
            raise ValueError(f"loss.log_q=true is for {', '.join(TAKES_LOG_Q)}; loss.name={loss.name} ignores it")
        if loss.log_q and self.sampling.hardest:
            raise ValueError("loss.log_q=true with sampling.hardest: the hardest of a pool have no known probability q")
        if self.effective_sampling.negatives == 0 and loss.name in losses:
            raise ValueError(f"loss.name={loss.name} needs negatives: sampling.negatives must be at least 1")
        return self

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
        """`sampling`, without negatives for losses over the whole catalogue, which draw none."""
        if self.loss.name in losses:
            return self.sampling
        return self.sampling.model_copy(update={"distribution": "uniform", "negatives": 0})


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Load and validate the configuration of a run.

    Args:
        path: YAML file with the keys that differ from the defaults; None for the defaults.
        overrides: `dotted.key=value` strings, values in YAML. Later ones win.

    Raises:
        UserError: a missing or broken file, an unknown key (the message lists the nearest known ones), a bad value.
    """
    return load(Config, None if path is None else Path(path), overrides)
