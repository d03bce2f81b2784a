"""Pair scores and shared scores against a loop over pairs; models."""

import torch

from distrec.models import make_model, models
from distrec.models.config import ModelConfig
from distrec.models.scoring import pair_scores, shared_scores


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


def test_mf_similarities():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert make_model(ModelConfig(similarity="dot")).users(rows) is rows
    cosine = make_model(ModelConfig(similarity="cosine"))
    assert torch.allclose(cosine.items(rows), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    assert list(models) == ["mf"]
