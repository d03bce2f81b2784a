"""A loss with a bug, for `run.imports` of a test."""

from torch import Tensor

from distrec.losses import LossInputs, losses
from distrec.losses.pairwise import BPR


@losses.register("failing")
class Failing(BPR):
    """Raises an exception in its first step."""

    def per_pair(self, step: LossInputs) -> Tensor:
        raise ZeroDivisionError("a bug in a loss")
