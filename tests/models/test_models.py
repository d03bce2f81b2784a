"""The contract of a model, which it must keep by being registered: its training steps are those of its formula over
dense matrices, with any number of workers and across a save and a load; and it finds planted preferences.

One process group per number of workers trains all cases. Steps are of momentum with full decay, which have a state and
reach every row, and are linear in the gradient: Adam would show rounding differences of gradients near zero in full.
"""

import numpy as np
import pytest
import torch

from distrec.data import planted
from distrec.data.prepare import prepare
from distrec.evaluation.collapse import collapse_warning
from distrec.testing.ranks import run_ranks
from distrec.training.trainer import Trainer
from tests.conftest import changed
from tests.models.formulas import FORMULAS, DenseModel, own_models
from tests.training.test_trainer import evaluate, ndcg_of

CPU, HALF, END = torch.device("cpu"), 3, 6
# More options of a model than the defaults, and settings that train it better on little data.
VARIANTS = {
    "mlp": {"affine": {"activation": "none"}},
    "simplex": {"user": {"pooling": "user_attention"}, "self": {"pooling": "self_attention", "own_weight": 0.2}},
    "lightgcn": {"one": {"layers": 1}, "dot": {"layers": 2, "similarity": "dot"}},
    "gcmc": {"dot": {"similarity": "dot"}},
}
DECAY = {"scope": "full", "coupling": "l2", "strength": 0.01}
OPTIM = {"rule": "momentum", "lr": 0.05, "decay": DECAY}


def cases(small):
    """Return the configurations of the cases: every model with its defaults, and its variants."""
    config = changed(small, optim=OPTIM, model={"init": {"std": 0.3}}, loss={"name": "ssm", "temperature": 0.5})
    options = {name: {"name": name} for name in own_models()}
    for name, variants in VARIANTS.items():
        options |= {f"{name}_{variant}": {"name": name, **more} for variant, more in variants.items()}
    needs = {"simplex": {"history": 7}, "macr": {"similarity": "dot"}}
    return {key: changed(config, model=model | needs.get(model["name"], {})) for key, model in options.items()}


# Losses with other inputs than scores of pairs, on which the numbers of workers are compared.
OTHERS = {
    "mf_prism": {"model": {"init": {"name": "prism"}}},
    "lightgcn_softmax": {"model": {"name": "lightgcn"}, "loss": {"name": "softmax"}},
    "simplex_softmax": {"model": {"name": "simplex", "history": 7}, "loss": {"name": "softmax"}},
    "lightgcn_mawu": {"model": {"name": "lightgcn"}, "loss": {"name": "mawu"}},
    "lightgcn_own_negatives": {"model": {"name": "lightgcn"}, "sampling": {"shared": False, "negatives": 5}},
    "lightgcn_dropout": {"model": {"name": "lightgcn", "user_dropout": 0.3}, "optim": {"clip_norm": 0.01}},
    "lightgcn_penalty": {"model": {"name": "lightgcn"}, "optim": {"decay": {"scope": "occurrences"}}},
    "lightgcn_few_pairs": {"model": {"name": "lightgcn"}, "train": {"batch_size": 3}},
    "gcmc_few_pairs": {"model": {"name": "gcmc"}, "train": {"batch_size": 3}},
}


def run_cases(configs, dataset, first, folder, load=None):
    """Take steps `first` to END of each case, with a checkpoint after HALF; return losses, and representations of all
    users and items, with their ids."""
    results = {}
    for name, config in configs.items():
        trainer, losses = Trainer(config, dataset, CPU), []
        if load:
            trainer.load(load / name)
        for k in range(first, END):
            batch = trainer.source.batch(*divmod(k, trainer.source.steps))
            losses.append(trainer.exchange.all_sum([trainer.step(batch).item()])[0])
            if k + 1 == HALF:
                (folder / name).mkdir(exist_ok=True)
                trainer.save(folder / name, {})
        ids = [trainer.tables[entity].partition.rows_of(trainer.exchange.rank) for entity in ("users", "items")]
        rows = trainer.scorer.representations(np.arange(len(ids[0])))
        results[name] = losses, [(index, values.numpy().copy()) for index, values in zip(ids, rows, strict=True)]
    return results


def joined(ranks):
    """Return (losses, representations of all users, of all items) by case from the results of the ranks."""
    results = {}
    for name, (losses, sides) in ranks[0].items():
        assert all(rank[name][0] == losses for rank in ranks)
        results[name] = [losses]
        for k in range(len(sides)):
            parts = [rank[name][1][k] for rank in ranks]
            rows_VD = np.full((sum(len(index) for index, _ in parts), parts[0][1].shape[1]), np.nan, np.float32)
            for index, values in parts:
                rows_VD[index] = values
            results[name].append(rows_VD)
    return results


@pytest.fixture(scope="module")
def trained(small, dataset, tmp_path_factory):
    """(configurations, folder of the checkpoints, results by number of workers)."""
    configs = cases(small)
    configs |= {name: changed(configs["mf"], **sections) for name, sections in OTHERS.items()}
    folder = tmp_path_factory.mktemp("models")
    results = {}
    for workers in (1, 2, 3):
        (folder / str(workers)).mkdir()
        results[workers] = joined(run_ranks(workers, run_cases, configs, dataset, 0, folder / str(workers)))
    return configs, folder, results


def assert_close(found, expected, name, tolerance=2e-5):
    """Compare losses and representations; the tolerance is relative to the largest value, for sums of float32."""
    for k, (value, wanted) in enumerate(zip(found, expected, strict=True)):
        error = np.abs(np.asarray(value) - np.asarray(wanted)).max() / np.abs(wanted).max()
        assert error < tolerance, (name, k, error)


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_changes_nothing(trained, workers):
    _, _, results = trained
    for name, expected in results[1].items():
        assert_close(results[workers][name], expected, name)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_checkpoint_of_two_workers_goes_on(trained, dataset, tmp_path, workers):
    configs, folder, results = trained
    found = joined(run_ranks(workers, run_cases, configs, dataset, HALF, tmp_path, folder / "2"))
    for name, (losses, *rows) in results[2].items():
        assert_close(found[name], [losses[HALF:], *rows], name)


def test_steps_are_those_of_the_formula(trained, small, dataset):
    assert set(own_models()) == FORMULAS.keys()
    _, _, results = trained
    for name, config in cases(small).items():
        trainer = Trainer(config, dataset, CPU)
        dense, losses = DenseModel(trainer), []
        optimizer = torch.optim.SGD(dense.parameters(), OPTIM["lr"], config.optim.momentum, weight_decay=0.01)
        for k in range(END):
            optimizer.zero_grad()
            loss = dense.loss(trainer.source.batch(*divmod(k, trainer.source.steps)))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        rows = [side.detach().numpy() for side in dense.representations()]
        assert_close(results[1][name], [losses, *rows], name)


def test_the_smallest_data(small, tmp_path):
    """One interaction, and an item without any; two of three workers have no user."""
    (tmp_path / "train.txt").write_text("0 0\n")
    (tmp_path / "test.txt").write_text("0 1\n")
    configs = cases(changed(small, data={"source": str(tmp_path), "valid_fraction": 0}))
    data, found = prepare(configs["mf"].data, log=lambda text: None), []
    for workers in (1, 3):
        found.append(joined(run_ranks(workers, run_cases, configs, data, 0, tmp_path)))
    for name in configs:
        assert all(np.isfinite(values).all() for values in found[0][name]), name
        assert_close(found[1][name], found[0][name], name, 1e-4)


LEARNS = {
    "macr": {"model": {"similarity": "dot", "init": {"std": 0.1}}, "loss": {"name": "macr"}},
    "gcmc": {"optim": {"lr": 0.02}},
    "mlp": {"model": {"init": {"std": 0.1}}, "train": {"batch_size": 256}},
}


@pytest.fixture(scope="module")
def preferences(small):
    """More data than `small`, with the NDCG@20 of the true preferences that made them and of popularity."""
    data = {"planted": {"users": 600, "items": 400, "interactions": 30_000}}
    config = changed(small, data=data, model={"dim": 32}, train={"batch_size": 1024}, sampling={"negatives": 256})
    dataset = prepare(config.data, log=lambda text: None)
    truth = planted.make(config.data.planted)
    users, items = (np.array(ids.to_pylist()).astype(int) for ids in (dataset.user_ids(), dataset.item_ids()))
    popularity = np.tile(dataset.item_degrees().astype(float), (len(users), 1))
    return config, dataset, ndcg_of(dataset, truth.scores(users)[:, items]), ndcg_of(dataset, popularity)


@pytest.mark.parametrize("name", own_models())
@pytest.mark.long
def test_every_model_learns_the_planted_preferences(preferences, name):
    config, dataset, best, popular = preferences
    sections = LEARNS.get(name, {})
    model = {"name": name, **sections.get("model", {})}
    trainer = Trainer(changed(config, **{**sections, "model": model}), dataset, CPU)
    for epoch in range(6):
        for batch in trainer.source.batches(epoch, 0, trainer.source.steps):
            trainer.step(batch)
    found = evaluate(trainer)
    assert 1.4 * popular < found.means()["ndcg@20"] < best
    assert collapse_warning(found.diagnostics | trainer.diagnostics(), []) is None
