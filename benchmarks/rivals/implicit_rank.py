"""implicit's ranking of all items for every user, training items left out.

python implicit_rank.py FOLDER K    FOLDER holds train.npz (user, item), and takes the factors and the lists
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
    """Learns factors with two rounds of alternating least squares, and writes them and the first lists."""
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
        began = time.perf_counter()
        lists()
        return {"seconds": time.perf_counter() - began}

    return repeat


if __name__ == "__main__":
    serve(start, ["implicit", "numpy", "scipy"])
