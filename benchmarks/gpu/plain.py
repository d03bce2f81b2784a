"""Train with plain PyTorch: embedding lookups, autograd, an optimizer of torch, negatives by randint.

Nothing is excluded and no CUDA graph is used. Two ways: sparse gradients with SparseAdam, dense ones with fused Adam.
"""

from collections.abc import Callable

import torch
from torch.nn import functional

from .step import Interactions


def plain_step(
    kind: str, data: Interactions, pairs: int, n: int, dim: int, sparse: bool, temperature: float = 0.1
) -> Callable[[], None]:
    """Return a function that takes one step; each call takes the next pairs."""
    device = data.user_E.device
    tables = [torch.nn.Embedding(rows, dim, sparse=sparse, device=device) for rows in (data.users, data.items)]
    users, items = tables
    for table in tables:
        torch.nn.init.normal_(table.weight, std=0.1)
    parameters = [table.weight for table in tables]
    if sparse:
        optimizer = torch.optim.SparseAdam(parameters, lr=1e-3)
    else:
        optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=device.type == "cuda")
    order_E, place, cosine = data.order_E.long(), [0], kind != "bpr"

    def rows(table: torch.nn.Embedding, index: torch.Tensor) -> torch.Tensor:
        """Look rows up; dense tables are normalised as a whole, as that is less than the gathered rows."""
        if not cosine:
            return table(index)
        if sparse:
            return functional.normalize(table(index), dim=-1)
        return functional.embedding(index, functional.normalize(table.weight))

    def step() -> None:
        at = order_E[place[0] : place[0] + pairs]
        place[0] = (place[0] + pairs) % max(1, len(order_E) - pairs)
        user, item = data.user_E[at].long(), data.item_E[at].long()
        user_BD = rows(users, user)
        if kind == "exact":
            scores_BV = user_BD @ functional.normalize(items.weight).T / temperature
            loss = functional.cross_entropy(scores_BV, item)
        else:
            positive_B = (user_BD * rows(items, item)).sum(1)
            if kind == "shared":
                negative_BN = user_BD @ rows(items, torch.randint(data.items, (n,), device=device)).T
            else:
                negative_BND = rows(items, torch.randint(data.items, (pairs, n), device=device))
                negative_BN = torch.bmm(negative_BND, user_BD[:, :, None])[:, :, 0]
            if kind == "bpr":
                loss = functional.softplus(negative_BN[:, 0] - positive_B).mean()
            else:
                scores = torch.cat([positive_B[:, None], negative_BN], 1) / temperature
                loss = (torch.logsumexp(scores, 1) - scores[:, 0]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step
