"""Models: table rows in, representations out. Importing the package registers every model."""

from distrec.models import mf  # noqa: F401
from distrec.models.base import Model, make_model, models

__all__ = ["Model", "make_model", "models"]
