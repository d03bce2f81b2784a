"""Steps of PyTorch Geometric's LightGCN as in its example: BPR, one negative a pair, dense Adam.

python pyg_lightgcn.py FOLDER BATCH LAYERS THREADS STEPS        FOLDER holds train.npz (user, item)
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from serve import serve
from torch_geometric.nn import LightGCN


def start() -> Callable[[], dict[str, Any]]:
    """Build the graph, in both directions, and the model."""
    pairs, (batch, layers, threads, steps) = np.load(Path(sys.argv[1]) / "train.npz"), map(int, sys.argv[2:])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    user, item = (torch.from_numpy(pairs[name]).long() for name in ("user", "item"))
    users, items = int(user.max()) + 1, int(item.max()) + 1
    edges = torch.stack([user, item + users])
    graph = torch.cat([edges, edges.flip(0)], 1)
    model = LightGCN(users + items, 64, layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step() -> None:
        positive = edges[:, torch.randint(len(user), (batch,))]
        negative = torch.stack([positive[0], torch.randint(users, users + items, (batch,))])
        optimizer.zero_grad()
        ranks = model(graph, torch.cat([positive, negative], 1))
        loss = model.recommendation_loss(*ranks.chunk(2), node_id=torch.cat([positive, negative], 1).unique())
        loss.backward()
        optimizer.step()

    def repeat() -> dict[str, Any]:
        """Take some steps. Return the median duration of one."""
        durations = []
        for _ in range(steps):
            start_s = time.perf_counter()
            step()
            durations.append(time.perf_counter() - start_s)
        return {"seconds": float(np.median(durations))}

    return repeat


if __name__ == "__main__":
    serve(start, ["torch-geometric", "torch"])
