"""A step of sampled softmax as in common research code: dense tables, dense gradients, dense Adam.

python plain_torch.py FOLDER BATCH NEGATIVES        FOLDER holds train.npz (user, item)
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from serve import serve
from torch.nn.functional import cross_entropy, normalize

_DIM, _TEMPERATURE = 64, 0.1


def start() -> Callable[[], dict[str, Any]]:
    """Initialise the tables. Negatives are drawn uniformly for each pair, without rejection."""
    torch.manual_seed(0)
    pairs, (batch, negatives) = np.load(Path(sys.argv[1]) / "train.npz"), map(int, sys.argv[2:])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    user, item = (torch.from_numpy(pairs[name]).long().to(device) for name in ("user", "item"))
    users, items = (torch.nn.Embedding(int(ids.max()) + 1, _DIM, device=device) for ids in (user, item))
    optimizer = torch.optim.Adam([*users.parameters(), *items.parameters()], lr=1e-3)

    def step() -> float:
        pair_B = torch.randint(len(user), (batch,), device=device)
        negative_BN = torch.randint(items.num_embeddings, (batch, negatives), device=device)
        chosen_BND = normalize(items(torch.cat([item[pair_B, None], negative_BN], 1)), dim=2)
        user_BD = normalize(users(user[pair_B]), dim=1)
        scores_BN = torch.bmm(chosen_BND, user_BD[:, :, None]).squeeze(2) / _TEMPERATURE
        loss = cross_entropy(scores_BN, torch.zeros(batch, dtype=torch.long, device=device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    def repeat() -> dict[str, Any]:
        start_s = time.perf_counter()
        loss = step()
        return {"seconds": time.perf_counter() - start_s, "loss": loss}

    return repeat


if __name__ == "__main__":
    torch.set_num_threads(2)
    serve(start, ["torch"])
