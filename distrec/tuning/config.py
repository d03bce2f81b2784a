"""Configuration of a search: the keys `tune.*`, beside those of the runs that it compares."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from distrec.core.section import Section
from distrec.evaluation.metrics import check_user_metric
from distrec.training.config import Config

_TRIALS = 20  # default budget, where none is given


class ResourcesConfig(Section):
    """What a trial reserves of the cluster."""

    cpu: float | None = Field(None, gt=0)
    """CPUs of a trial. null: one for each of its workers."""
    gpu: float | None = Field(None, ge=0)
    """GPUs of a trial with one worker; 0.25 lets four trials share one. null: 1 if the cluster has GPUs and
    train.device is not cpu."""


class TuneConfig(Section):
    """A search: its budget, sampler and rule for stopping trials early."""

    trials: int | None = Field(None, ge=1)
    """Most trials. null: for `grid` all combinations, else 20, or without limit if `minutes` or `epochs` are given."""
    minutes: float | None = Field(None, gt=0)
    """Minutes after which trials are stopped, without those of the refit. Earlier parts of a resumed search count."""
    epochs: int | None = Field(None, ge=1)
    """Epochs of all trials together, after which they are stopped."""
    sampler: Literal["random", "grid", "tpe", "gp"] = "tpe"
    """How configurations are chosen: `random`; `grid`, all combinations; `tpe`, a tree-structured Parzen estimator;
    `gp`, a Gaussian process. Trial n of random and grid depends on the seed and n alone."""
    stop: Literal["asha", "median", "none"] = "asha"
    """When a trial is stopped early: `asha`, unless it is among the best 1/reduction of those that came as far as
    `grace` epochs, `grace` times `reduction`, and so on; `median`, if its best value is below the median of the running
    means of the others; `none`, never."""
    grace: int = Field(1, ge=1)
    """Epochs that each trial is given."""
    reduction: int = Field(3, ge=2)
    """For asha: factor between the epochs of two rungs; a trial in this many goes on at each."""
    metric: str | None = None
    """Validation metric, such as ndcg@20, to maximise. null: train.watch, or NDCG at the first of eval.k."""
    refit_seeds: int = Field(1, ge=0)
    """Trainings of the best configuration on the training and validation part together, for its best number of epochs,
    with the seeds run.seed, run.seed + 1, ...; only they are evaluated on the test part. 0: none."""
    concurrent: int | None = Field(None, ge=1)
    """Most trials at once. null: as many as the cluster has room for."""
    seed: int = 0
    """Seed of the sampler."""
    resources: ResourcesConfig = ResourcesConfig()

    @field_validator("metric")
    @classmethod
    def _of_validation(cls, metric: str | None) -> str | None:
        if metric is None:
            return None
        part, _, name = metric.rpartition("/")
        if part not in ("", "valid"):
            raise ValueError(f"{metric!r}: a search looks at validation data only; write {name}")
        check_user_metric(name, metric)
        return name

    def most_trials(self, combinations: int | None) -> int | None:
        """Return the most trials, `combinations` being those of a grid; None for no limit."""
        if combinations is not None:
            return min(combinations, self.trials or combinations)
        return self.trials or (None if self.minutes or self.epochs else _TRIALS)


class SearchConfig(Config):
    """Everything a search depends on: the configuration of its runs, the search, and the space."""

    tune: TuneConfig = TuneConfig()
    space: dict[str, Any] = {}
    """Ranges by dotted key."""

    @model_validator(mode="before")
    @classmethod
    def _one_worker(cls, tree: Any) -> Any:
        """Let trials have one worker by default: more only change the speed, and each trial would start Ray Train."""
        if isinstance(tree, dict) and isinstance(train := tree.get("train", {}), dict):
            return {**tree, "train": {"workers": 1, **train}}
        return tree

    @property
    def metric(self) -> str:
        """Validation metric to maximise."""
        return self.tune.metric or self.watched or f"ndcg@{self.eval.k[0]}"

    @model_validator(mode="after")
    def _check_refit(self) -> Self:
        if not self.eval.every:
            raise ValueError("a search needs evaluations on the validation part: set eval.every to 1 or more")
        if self.tune.refit_seeds and self.optim.schedule.name == "plateau" and "optim" not in self.unused():
            raise ValueError(
                "optim.schedule.name=plateau follows a validation metric, and a refit on the training and validation "
                "part has none: choose another schedule, or set tune.refit_seeds=0"
            )
        return self


def absolute(config: Config) -> dict[str, Any]:
    """Return the paths of the data as absolute ones, by dotted key: trials run in other folders."""
    data = config.data
    paths = {key: Path(value) for key in ("test", "valid", "cache") if (value := getattr(data, key)) is not None}
    if data.source != "planted":
        paths["source"] = Path(data.source)
    return {f"data.{key}": str(path.absolute()) for key, path in paths.items()}
