"""An epoch of implicit's BPR with rejection of known positives, after a warm-up epoch.

python implicit_bpr.py FOLDER       FOLDER holds train.npz (user, item)
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from implicit.bpr import BayesianPersonalizedRanking
from scipy.sparse import csr_matrix
from serve import serve

_EPOCHS = 5


def start() -> Callable[[], dict[str, Any]]:
    """Read the data."""
    pairs = np.load(Path(sys.argv[1]) / "train.npz")
    matrix = csr_matrix((np.ones(len(pairs["user"]), np.float32), (pairs["user"], pairs["item"])))

    def repeat() -> dict[str, Any]:
        """Fit a few epochs and return the median duration. The first includes the setup of the fit, and is left out."""
        ends: list[float] = []
        model = BayesianPersonalizedRanking(
            factors=63,  # with the bias: rows of 64
            iterations=_EPOCHS + 1,
            num_threads=2,
            verify_negative_samples=True,
            random_state=0,
            use_gpu=False,
        )
        model.fit(matrix, show_progress=False, callback=lambda *_: ends.append(time.perf_counter()))
        return {"seconds": float(np.median(np.diff(ends)))}

    return repeat


if __name__ == "__main__":
    serve(start, ["implicit", "numpy", "scipy"])
