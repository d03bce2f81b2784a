"""Training steps in plain PyTorch: embedding lookups, autograd, an optimizer of torch, negatives from torch.randint.

Nothing is excluded and no CUDA graph is used. Gradients are sparse, with SparseAdam, or dense, with fused Adam.
"""

from collections.abc import Callable

import torch
from torch.nn import functional

from .step import Interactions


def plain_step(
    kind: str,
    data: Interactions,
    sizes: tuple[int, int],
    pairs: int,
    n: int,
    dim: int,
    sparse: bool,
    temperature: float = 0.1,
) -> Callable[[], None]:
    """Return a function that takes one step on the next pairs. `sizes`: numbers of users and of items."""
    device = data.user_E.device
    users, items = (torch.nn.Embedding(rows, dim, sparse=sparse, device=device) for rows in sizes)
    parameters = [users.weight, items.weight]
    for weight in parameters:
        torch.nn.init.normal_(weight, std=0.1)
    if sparse:
        optimizer = torch.optim.SparseAdam(parameters, lr=1e-3)
    else:
        optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=device.type == "cuda")
    order_E, first, cosine = data.order_E.long(), 0, kind != "bpr"

    def rows(table: torch.nn.Embedding, index: torch.Tensor) -> torch.Tensor:
        """Look rows up. Dense tables are normalised as a whole: fewer rows than the gathered ones."""
        if not cosine:
            return table(index)
        if sparse:
            return functional.normalize(table(index), dim=-1)
        return functional.embedding(index, functional.normalize(table.weight))

    def step() -> None:
        nonlocal first
        index = order_E[first : first + pairs]
        first = (first + pairs) % max(1, len(order_E) - pairs)
        user, item = data.user_E[index].long(), data.item_E[index].long()
        user_BD = rows(users, user)
        if kind == "exact":
            scores_BV = user_BD @ functional.normalize(items.weight).T / temperature
            loss = functional.cross_entropy(scores_BV, item)
        else:
            positive_B = (user_BD * rows(items, item)).sum(1)
            if kind == "shared":
                negative_BN = user_BD @ rows(items, torch.randint(sizes[1], (n,), device=device)).T
            else:
                negative_BND = rows(items, torch.randint(sizes[1], (pairs, n), device=device))
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
