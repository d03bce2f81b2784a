"""Models: table rows in, representations out. Importing the package registers every model."""

from distrec.models import ease, gcmc, ials, itemknn, lightgcn, macr, mf, mlp, pop, simplex  # noqa: F401
from distrec.models.base import EmbeddingConfig, Model, ModelConfig, SolverConfig, models

__all__ = ["EmbeddingConfig", "Model", "ModelConfig", "SolverConfig", "models"]
