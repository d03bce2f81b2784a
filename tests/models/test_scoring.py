"""Pair scores and shared scores against a loop over pairs; matrix factorisation."""

import torch

from distrec.models import models
from distrec.models.base import ModelInputs
from distrec.models.scoring import l2_normalize, pair_scores, shared_scores


def test_scores_against_a_loop():
    torch.manual_seed(0)
    users, items = torch.randn(4, 8, dtype=torch.float64), torch.randn(6, 8, dtype=torch.float64)
    user_index, item_index = (
        torch.tensor([0, 3, 3], dtype=torch.int32),
        torch.tensor([[0, 5], [1, 1], [2, 0]], dtype=torch.int32),
    )
    expected = torch.stack(
        [torch.stack([users[u] @ items[i] for i in row]) for u, row in zip(user_index, item_index, strict=True)]
    )
    assert torch.allclose(pair_scores(users, items, user_index, item_index), expected)
    positive, shared = shared_scores(users, items, user_index, item_index[:, 0], item_index[0])
    assert torch.allclose(positive, expected[:, 0])
    assert torch.allclose(
        shared, torch.stack([torch.stack([users[u] @ items[i] for i in item_index[0]]) for u in user_index])
    )


def test_mf_represents_by_its_rows():
    rows, others = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.ones(3, 2)
    users, items = models["mf"]().build().encode(ModelInputs({"users": rows}, {"items": others}))
    assert users is rows and items is others
    assert torch.allclose(l2_normalize(rows), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))  # of the cosine
