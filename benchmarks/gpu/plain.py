"""A step of sampled softmax in plain PyTorch: look-ups, autograd, fused Adam, negatives from torch.randint.

Nothing is excluded and no CUDA graph is used. `gathered`: normalise the rows of the batch, as is common, and not whole
tables, which are fewer rows.
"""

from collections.abc import Callable

import torch
from torch.nn import functional

from distrec.data.dataset import Dataset, Part

_DIM, _TEMPERATURE = 64, 0.1


def plain_step(
    dataset: Dataset, pairs: int, negatives: int, device: torch.device, gathered: bool
) -> Callable[[], None]:
    """Return a function that takes one step on random pairs."""
    manifest = dataset.manifest
    user_E, item_E = (
        torch.from_numpy(ids).long().to(device) for ids in dataset.interactions(Part.TRAIN, range(manifest.buckets))
    )
    tables = [
        torch.nn.Parameter(0.01 * torch.randn(rows, _DIM, device=device)) for rows in (manifest.users, manifest.items)
    ]
    optimizer = torch.optim.Adam(tables, lr=1e-3, fused=device.type == "cuda")

    def step() -> None:
        pair_B = torch.randint(len(user_E), (pairs,), device=device)
        negative_BN = torch.randint(manifest.items, (pairs, negatives), device=device)
        users_UD, items_VD = tables if gathered else map(functional.normalize, tables)
        user_BD = functional.embedding(user_E[pair_B], users_UD)
        item_BND = functional.embedding(torch.cat([item_E[pair_B, None], negative_BN], 1), items_VD)
        if gathered:
            user_BD, item_BND = functional.normalize(user_BD, dim=1), functional.normalize(item_BND, dim=2)
        scores_BN = torch.bmm(item_BND, user_BD[:, :, None])[:, :, 0] / _TEMPERATURE
        loss = functional.cross_entropy(scores_BN, torch.zeros(pairs, dtype=torch.long, device=device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step
