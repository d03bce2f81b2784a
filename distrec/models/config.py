"""Configuration of the model."""

from typing import Literal

from pydantic import Field

from distrec.core.config import Section


class ModelConfig(Section):
    name: str = "mf"
    """Model; `mf` is matrix factorisation."""
    dim: int = Field(64, ge=1)
    """Dimension D of the embeddings."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """Similarity of a user and an item, in training and in evaluation."""
    init_std: float = Field(0.01, gt=0)
    """Standard deviation of the normal distribution that initialises the rows."""
    bfloat16: bool = False
    """Store rows as bfloat16, in half the memory. Arithmetic and optimizer state stay float32."""
