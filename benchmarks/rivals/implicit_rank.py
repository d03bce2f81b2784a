"""implicit's ranking of all items for every user, training items excluded.

python implicit_rank.py FOLDER K    FOLDER holds train.npz (user, item); factors.npz is written to it
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
    """Learn factors by two iterations of alternating least squares; write them and their top-K lists."""
    folder, k = Path(sys.argv[1]), int(sys.argv[2])
    pairs = np.load(folder / "train.npz")
    matrix = csr_matrix((np.ones(len(pairs["user"]), np.float32), (pairs["user"], pairs["item"])))
    model = AlternatingLeastSquares(factors=64, iterations=2, num_threads=2, random_state=0, use_gpu=False)
    model.fit(matrix, show_progress=False)
    users = np.arange(matrix.shape[0])

    def lists() -> np.ndarray:
        return model.recommend(users, matrix, N=k, filter_already_liked_items=True)[0]

    np.savez(folder / "factors.npz", users=model.user_factors, items=model.item_factors, lists=lists())

    def repeat() -> dict[str, Any]:
        start_s = time.perf_counter()
        lists()
        return {"seconds": time.perf_counter() - start_s}

    return repeat


if __name__ == "__main__":
    serve(start, ["implicit", "numpy", "scipy"])
