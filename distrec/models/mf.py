"""Matrix factorisation: the score of a pair is the dot product or the cosine of its two rows."""

from torch import Tensor

from distrec.models.base import models
from distrec.models.config import ModelConfig
from distrec.models.scoring import l2_normalize


@models.register("mf")
class MF:
    """Koren, Bell and Volinsky, "Matrix Factorization Techniques for Recommender Systems", 2009; without biases."""

    def __init__(self, config: ModelConfig) -> None:
        self.cosine = config.similarity == "cosine"

    def users(self, rows_UD: Tensor) -> Tensor:
        return l2_normalize(rows_UD) if self.cosine else rows_UD

    items = users
