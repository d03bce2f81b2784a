"""The whole configuration: one section a part, and the checks that need more than one of them."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from distrec.core.config import Section
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
    workers: int = Field(2, ge=1)
    """Worker processes W. They change the speed, not the result."""
    epochs: int = Field(10, ge=1)
    """Passes over the training interactions."""
    batch_size: int = Field(2048, ge=1)
    """Pairs of a step, over all workers."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes CUDA where the cluster has a GPU for each worker."""
    threads: int = Field(0, ge=0)
    """Threads of each worker on the CPU; 0 shares the cores of the machine among the workers."""
    send_bfloat16: bool = False
    """Look items up as bfloat16, which halves what travels to the workers. Their gradients stay float32."""
    checkpoint_every: int = Field(1, ge=1)
    """Epochs between checkpoints; the last epoch always has one."""
    stream: Literal["auto", "ray", "thread"] = "auto"
    """Who draws and prepares the batches: ray, Ray Data in processes beside each worker; thread, a thread of the
    worker; auto, a thread where a worker on the CPU takes many negatives of each pair's own, and Ray Data elsewhere.
    The batches are the same."""
    stream_actors: int = Field(0, ge=0)
    """Processes of Ray Data beside each worker; 0: one, and for a worker on a GPU up to 8, as the cluster has cores."""
    look_ahead_mib: int = Field(32, ge=16)
    """Bound on the batches that are prepared ahead of each worker, MiB; with Ray Data for each of its actors, beside up
    to three blocks of 32 MiB that are under way."""


class RunConfig(Section):
    dir: Path | None = None
    """Run folder. By default runs/NAME, or the next free runs/NAME-2, -3, ..., NAME being the configuration file's."""
    seed: int = 0
    """Seed of initial rows, shuffles and negatives."""
    resume: bool = False
    """Go on from the last checkpoint of the run folder (by default: of the latest run of that name)."""


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
    def _parts_fit(self) -> "Config":
        known = [*losses, *catalogue_losses]
        if self.loss.name not in known:
            raise ValueError(f"loss.name: unknown loss {self.loss.name!r}; known: {', '.join(sorted(known))}")
        models[self.model.name]
        if self.train.batch_size < self.train.workers:
            raise ValueError(
                f"train.batch_size={self.train.batch_size} is less than train.workers={self.train.workers}"
            )
        if self.loss.log_q and self.loss.name not in TAKES_LOG_Q:
            raise ValueError(f"loss.log_q=true is for {', '.join(TAKES_LOG_Q)}; loss.name={self.loss.name} ignores it")
        if self.loss.log_q and self.sampling.hardest:
            raise ValueError("loss.log_q=true with sampling.hardest: the hardest of a pool have no known probability q")
        if self.drawn.negatives == 0 and self.loss.name in losses:
            raise ValueError(
                f"loss.name={self.loss.name} compares with negatives: sampling.negatives must be at least 1"
            )
        return self

    @property
    def streamed_by(self) -> str:
        """`train.stream`, with `auto` decided.

        Gowalla, one worker of two cores: 800 negatives a pair took 62 ms a step by thread and 68 by Ray Data, 64 a pair
        30 and 33, and the process of the worker 150 MiB less by thread. With shared negatives, or one a pair, there was
        no difference, and Ray Data leaves the trainer the lock of the interpreter.
        """
        if self.train.stream != "auto":
            return self.train.stream
        return "thread" if not self.drawn.shared and self.drawn.negatives >= _MANY_NEGATIVES else "ray"

    @property
    def drawn(self) -> SamplingConfig:
        """`sampling`, but for losses over the whole catalogue, which draw nothing."""
        if self.loss.name in losses:
            return self.sampling
        return self.sampling.model_copy(update={"distribution": "uniform", "negatives": 0})
