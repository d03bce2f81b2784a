"""Matrix factorisation: the score of a pair is the dot product or the cosine of its two rows."""

from distrec.models.base import EmbeddingConfig, Model, models


@models.register("mf")
class MF(EmbeddingConfig):
    """Matrix factorisation without biases (Koren, Bell and Volinsky, IEEE Computer 2009)."""

    def build(self) -> Model:
        return Model()
