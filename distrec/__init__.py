"""distrec: collaborative-filtering embedding models on a Ray cluster.

The public names are imported on first use, so that `import distrec` is fast.

Shape suffixes of arrays, used in the whole package:

    B  pairs of a batch                     U  unique rows of a batch
    N  negatives of a pair                  R  rows that other workers request of a worker
    M  extra positives of a pair            V  rows of a table or shard
    H  history length                       K  cut-off of a ranking
    D  dimension                            W  workers

`scores_BN` has the shape (B, N). A module that needs another letter defines it in its docstring.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distrec.core.errors import UserError, WorkerLost
    from distrec.serve.recommender import load_model
    from distrec.training.config import Config, load_config
    from distrec.training.driver import train
    from distrec.training.evaluate import evaluate
    from distrec.tuning.studies import study
    from distrec.tuning.tuner import tune

__version__ = "0.1.0"

__all__ = ["Config", "UserError", "WorkerLost", "evaluate", "load_config", "load_model", "study", "train", "tune"]

_MODULES = {
    "Config": "distrec.training.config",
    "UserError": "distrec.core.errors",
    "WorkerLost": "distrec.core.errors",
    "evaluate": "distrec.training.evaluate",
    "load_config": "distrec.training.config",
    "load_model": "distrec.serve.recommender",
    "study": "distrec.tuning.studies",
    "train": "distrec.training.driver",
    "tune": "distrec.tuning.tuner",
}


def __getattr__(name: str) -> Any:
    """Import a public name."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
