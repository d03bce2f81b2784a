"""Each loss in training: any number of workers takes the same steps; dropout, clipping and decay by occurrence.

One process group per number of workers trains all cases. Steps are of plain SGD: Adam would show rounding differences
of gradients near zero in full.
"""

import pytest
import torch

from distrec.losses import losses
from distrec.testing.ranks import run_ranks
from distrec.training.trainer import Trainer
from tests.conftest import changed

CPU, STEPS = torch.device("cpu"), 2
PAIRS = {"shared": False, "negatives": 6}
OCCURRENCES = {"decay": {"scope": "occurrences", "coupling": "l2", "strength": 0.5}}
# What a loss needs beside the defaults; the others train on cosines.
NEEDS = {
    "contrastive": {"model": {"similarity": "dot", "init": {"std": 0.3}}},
    "triplet": {"model": {"similarity": "dot", "init": {"std": 0.3}}, "sampling": PAIRS},
    "generalized_contrastive": {"loss": {"positive": "d", "negative": "d+m"}, "sampling": PAIRS},
    "simce": {"sampling": PAIRS},
    "ccl": {"loss": {"margin": 0.1}},
    "macr": {"model": {"name": "macr", "similarity": "dot", "init": {"std": 0.3}}, "sampling": PAIRS},
    "mml": {"loss": {"margins": (-0.2, 0.1), "margin_weights": (0.4, 0.6), "negative_weight": 9.0}},
}
CASES = {
    "positions": ("directau", {"loss": {"rows": "positions"}}),
    "positions_clipped": (
        "mawu",
        {"loss": {"rows": "positions", "uniformity": "pairs"}, "optim": {"clip_norm": 0.01}},
    ),
    "bsl_paper": ("bsl", {"loss": {"form": "paper"}, "sampling": PAIRS}),
    "dropout": ("bsl", {"model": {"user_dropout": 0.3, "user_dropout_before_norm": True}}),
    "dropout_of_distances": ("contrastive", {"model": {"user_dropout": 0.3}}),
    "dropout_of_a_batch": ("directau", {"model": {"user_dropout": 0.3, "user_dropout_before_norm": True}}),
    "resn_of_few": ("resn", {"loss": {"weight": 0.1}, "model": {"similarity": "dot", "init": {"std": 0.3}}}),
    "macr_hardest": ("macr", {"loss": {"item_weight": 0.5, "user_weight": 0.5}, "sampling": PAIRS | {"hardest": 2}}),
    "macr_dropout": ("macr", {"model": {**NEEDS["macr"]["model"], "user_dropout": 0.3}, "sampling": {"shared": True}}),
    "softmax_clipped": ("softmax", {"optim": {"clip_norm": 0.01}}),
    "occurrences": ("mawu", {"optim": OCCURRENCES}),
    "occurrences_of_pairs": ("bsl", {"sampling": PAIRS, "optim": OCCURRENCES | {"clip_norm": 0.5}}),
    "occurrences_shared": ("ccl", {"optim": OCCURRENCES}),
}
# Trained on steps of three pairs too, of which a worker may have none: one for each kind of input.
FEW = ["bpr", "ipl", "resn", "macr", "bsl", "triplet", "debiased_ccl", "directau", "mawu", "softmax"]


def case_of(small, name, sections, batch_size=256):
    """Return the configuration that trains a loss with further keys."""
    needed = NEEDS.get(name, {})
    parts = {key: needed.get(key, {}) | sections.get(key, {}) for key in ("loss", "model", "sampling", "optim")}
    parts["loss"] |= {"name": name}
    parts["optim"] = {"rule": "sgd", "lr": 0.1} | parts["optim"]
    if losses[name].draws_known_positives:
        parts["sampling"] = {"reject": False} | parts["sampling"]
    config = changed(small, train={"batch_size": batch_size}, **parts)
    assert config.loss.name == name
    return config


def take_steps(configs, dataset):
    """Train each case for some steps; return the losses of the steps, and this rank's rows of each table, by case."""
    results = {}
    for name, config in configs.items():
        trainer, found = Trainer(config, dataset, CPU), []
        batches = [trainer.source.batch(0, step) for step in range(STEPS)]
        for batch, following in zip(batches, [*batches[1:], None], strict=True):
            found.append(trainer.exchange.all_sum([trainer.step(batch, following).item()])[0])
        tables = {
            key: (table.partition.rows_of(trainer.exchange.rank), table.flush().numpy().copy())
            for key, table in trainer.tables.items()
        }
        results[name] = found, tables
    return results


@pytest.fixture(scope="module")
def by_workers(small, dataset):
    """(losses of the steps, whole tables by name) of each case, by number of workers."""
    own = [name for name, loss in losses.items() if loss.__module__.startswith("distrec.")]
    configs = {name: case_of(small, name, {}) for name in own}
    configs |= {f"{name}_of_three_pairs": case_of(small, name, {}, batch_size=3) for name in FEW}
    configs |= {name: case_of(small, *case) for name, case in CASES.items()}
    return {workers: whole(run_ranks(workers, take_steps, configs, dataset)) for workers in (1, 2, 3)}


def whole(ranks):
    """Return the losses and the whole tables from the results of all ranks."""
    results = {}
    for name, (found, tables) in ranks[0].items():
        assert all(rank[name][0] == found for rank in ranks)
        joined = {}
        for key in tables:
            rows_VD = torch.full(
                (sum(len(rank[name][1][key][0]) for rank in ranks), tables[key][1].shape[1]), torch.nan
            )
            for rank in ranks:
                rows, values = rank[name][1][key]
                rows_VD[torch.from_numpy(rows)] = torch.from_numpy(values)
            joined[key] = rows_VD
        results[name] = found, joined
    return results


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_changes_nothing(by_workers, workers):
    for name, (expected, tables) in by_workers[1].items():
        found, found_tables = by_workers[workers][name]
        assert found == pytest.approx(expected, rel=2e-6, abs=2e-6), name
        assert found_tables.keys() == tables.keys(), name
        for key, rows_VD in tables.items():
            error = (found_tables[key] - rows_VD).abs().max()
            assert error <= 1e-5 * rows_VD.abs().max(), (name, key, error)


def one_step(config, dataset):
    """Return the tables before, the batch, and the change of each table in a step of SGD, divided by minus the rate."""
    trainer = Trainer(config, dataset, CPU)
    for table in trainer.tables.values():
        table.bounds = None  # margins would be clamped after the step
    before = {name: table.flush().clone() for name, table in trainer.tables.items()}
    batch = trainer.source.batch(0, 0)
    trainer.step(batch)
    changes = {name: (before[name] - table.flush()) / config.optim.lr for name, table in trainer.tables.items()}
    return before, batch, changes


@pytest.mark.parametrize("name", ["bsl", "ccl", "mawu"])
@pytest.mark.parametrize("shared", [True, False])
def test_decay_by_occurrence_is_the_penalty_on_the_pairs_of_the_batch(small, dataset, name, shared):
    """strength / (2 B) times the sum over pairs of |u|^2 + |i|^2 + sum_j |j|^2, by autograd over whole tables."""
    sampling = {"shared": shared, "negatives": 6, "reject": False}
    sections = {"sampling": sampling, "model": {"init": {"std": 0.3}}, "optim": {"lr": 0.01}}
    strengths = {"tables": {"items": 3.0}, "strength": 2.0}
    decay = {"decay": OCCURRENCES["decay"] | strengths}
    before, batch, plain = one_step(case_of(small, name, sections), dataset)
    _, _, decayed = one_step(case_of(small, name, sections | {"optim": {"lr": 0.01} | decay}), dataset)
    user_B = torch.from_numpy(batch.users_U[batch.user_index_B]).long()
    item_U = torch.from_numpy(batch.items_U).long()
    positive_B, negative = (item_U[index.astype(int)] for index in (batch.positive_index_B, batch.negative_index))
    if name != "mawu":
        negative = negative.expand(batch.pairs, 6) if shared else negative.view(batch.pairs, 6)
    used = {"users": user_B, "items": torch.cat([positive_B, negative.flatten()])}
    for table, rows_VD in before.items():
        leaf = rows_VD.double().requires_grad_()
        strength = 3.0 if table == "items" else 2.0
        entity = {"user_margins": "users", "item_margins": "items"}.get(table, table)
        penalty = strength / (2 * batch.pairs) * leaf[used[entity]].square().sum()
        expected_VD = torch.autograd.grad(penalty, leaf)[0].float()
        torch.testing.assert_close(decayed[table] - plain[table], expected_VD, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["ssm", "mawu", "softmax"])
def test_the_norm_of_the_whole_gradient_is_clipped_before_decay(small, dataset, name):
    decay = {"decay": {"scope": "full", "strength": 0.1}}
    changes = {}
    for clip_norm in (None, 0.003, 1e3):
        sections = {"model": {"init": {"std": 0.1}}, "optim": {"lr": 1.0, "clip_norm": clip_norm} | decay}
        before, _, changes[clip_norm] = one_step(case_of(small, name, sections), dataset)
    grads = {key: {k: change - 0.1 * before[k] for k, change in found.items()} for key, found in changes.items()}
    norm = torch.stack([grad.norm() for grad in grads[None].values()]).norm()
    assert 0.003 < norm < 1e3
    for table, grad_VD in grads[None].items():
        torch.testing.assert_close(grads[1e3][table], grad_VD)
        torch.testing.assert_close(grads[0.003][table], grad_VD * (0.003 / norm), rtol=1e-4, atol=1e-6)
