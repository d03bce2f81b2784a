"""An iteration of implicit's alternating least squares, without conjugate gradients, from given factors.

python implicit_als.py FOLDER THREADS  FOLDER holds train.npz (user, item) and start.npz (users, items, alpha,
                                       regularization, iterations); the factors after these iterations go to end.npz
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from implicit.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix
from serve import serve


def start() -> Callable[[], dict[str, Any]]:
    """Read the data."""
    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    pairs, given = np.load(folder / "train.npz"), np.load(folder / "start.npz")
    shape = len(given["users"]), len(given["items"])
    matrix = csr_matrix((np.ones(len(pairs["user"]), np.float32), (pairs["user"], pairs["item"])), shape)

    def repeat() -> dict[str, Any]:
        """Fit from the given factors. Return the median duration of an iteration; the first includes the setup."""
        ends: list[float] = []
        model = AlternatingLeastSquares(
            factors=given["users"].shape[1],
            regularization=float(given["regularization"]),
            alpha=float(given["alpha"]),
            iterations=int(given["iterations"]),
            use_cg=False,
            num_threads=threads,
            use_gpu=False,
        )
        model.user_factors, model.item_factors = given["users"].copy(), given["items"].copy()
        model.fit(matrix, show_progress=False, callback=lambda *_: ends.append(time.perf_counter()))
        np.savez(folder / "end.npz", users=model.user_factors, items=model.item_factors)
        return {"seconds": float(np.median(np.diff(ends)))}

    return repeat


if __name__ == "__main__":
    serve(start, ["implicit", "numpy", "scipy"])
