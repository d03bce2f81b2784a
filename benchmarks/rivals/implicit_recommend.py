"""implicit's `recommend` for all users, seen items left out.

python implicit_recommend.py FOLDER K    FOLDER holds factors.npz (users, items) and seen.npz (user, item)
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix
from serve import serve


def start() -> Callable[[], dict[str, Any]]:
    """Take the given factors; write the lists to lists.npz."""
    folder, k = Path(sys.argv[1]), int(sys.argv[2])
    factors, pairs = np.load(folder / "factors.npz"), np.load(folder / "seen.npz")
    model = AlternatingLeastSquares(factors=factors["users"].shape[1])
    model.user_factors, model.item_factors = factors["users"], factors["items"]
    shape = len(factors["users"]), len(factors["items"])
    seen = csr_matrix((np.ones(len(pairs["user"]), np.float32), (pairs["user"], pairs["item"])), shape=shape)
    users = np.arange(shape[0])
    np.savez(folder / "lists.npz", lists=model.recommend(users, seen, N=k)[0])

    def repeat() -> dict[str, Any]:
        start_s = time.perf_counter()
        model.recommend(users, seen, N=k)
        return {"seconds": time.perf_counter() - start_s}

    return repeat


if __name__ == "__main__":
    serve(start, ["implicit", "numpy", "scipy"])
