"""The model as MLflow loads it: a pyfunc flavour, whose data are a run folder with its prepared data."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from distrec.core.errors import UserError
from distrec.serve.recommender import Recommender, load_model

if TYPE_CHECKING:
    import pandas as pd


class PyfuncModel:
    """Recommends items to the users in a data frame."""

    def __init__(self, model: Recommender) -> None:
        self._model = model

    def predict(self, model_input: "pd.DataFrame", params: dict[str, Any] | None = None) -> "pd.DataFrame":
        """Return the frame of `Recommender.recommend`.

        Args:
            model_input: a column `user`, with ids of users.
            params: `k` and `seen`.
        """
        if "user" not in model_input:
            raise UserError(
                f"the model reads the column user; the input has {', '.join(map(str, model_input.columns))}"
            )
        options = {name: value for name, value in (params or {}).items() if value is not None}
        table = self._model.recommend(model_input["user"].tolist(), **options).to_pandas()
        return table.assign(source=table["source"].astype(str))


def _load_pyfunc(path: str) -> PyfuncModel:
    """Load a model; MLflow calls it by this name."""
    return PyfuncModel(load_model(Path(path)))
