"""Steps that stay on a GPU draw what the host draws, bit for bit, and give its losses, tables and optimizer state.

On a GPU, or operation by operation in Triton's interpreter, which takes some 20 ms for each pair: hence little data.
"""

import gc
import itertools
import weakref
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from distrec.data.dataset import Part
from distrec.data.prepare import prepare
from distrec.evaluation.evaluator import evaluate_part
from distrec.losses import Loss, losses
from distrec.models.base import TableSpec
from distrec.sharding.checkpoint import load_shard
from distrec.sharding.initialization import initializers
from distrec.sharding.partition import Partition
from distrec.testing.ranks import run_ranks
from distrec.testing.wire import counted_bytes
from distrec.training.config import Config
from distrec.training.device_conditions import prevented
from distrec.training.device_steps import DeviceSteps, pairs_only
from distrec.training.planning.sizes import Sizes, step_sizes
from distrec.training.planning.traffic import step_traffic
from distrec.training.trainer import Trainer
from tests.conftest import changed
from tests.kernels.gpu import CUDA, INTERPRETING, running

DEVICE = torch.device("cuda" if CUDA else "cpu")
ON_DEVICE = {"train": {"capture": True}, "optim": {"kernels": "triton"}}
ON_HOST = {"train": {"capture": False}, "optim": {"kernels": "auto"}}
CPU = torch.device("cpu")
PAIRS = {"shared": False, "negatives": 9}
DOT = {"similarity": "dot", "init": {"std": 0.1}}
# A pairwise sample of losses, samplers, rules and scopes.
CASES = {
    "ssm, full": {"sampling": PAIRS, "optim": {"decay": {"scope": "full", "strength": 0.1}}},
    "bsl, in batch, popularity": {
        "loss": {"name": "bsl"},
        "sampling": {**PAIRS, "distribution": "popularity"},
        "optim": {"decay": {"scope": "in_batch", "strength": 0.1}},
    },
    "bpr, one negative, adagrad": {
        "loss": {"name": "bpr"},
        "model": DOT,
        "sampling": {"shared": False, "negatives": 1},
        "optim": {"rule": "adagrad", "lr": 0.05},
    },
    "shared, log q, sgd, full, cosine schedule": {
        "loss": {"log_q": True},
        "sampling": {"distribution": "popularity", "negatives": 8},
        "optim": {
            "rule": "sgd",
            "lr": 1.0,
            "decay": {"scope": "full", "coupling": "l2", "strength": 0.02},
            "schedule": {"name": "cosine"},
        },
    },
    "in batch negatives, row-wise adagrad, clipped": {
        "sampling": {"distribution": "in_batch"},
        "optim": {"rule": "rowwise_adagrad", "lr": 0.05, "clip_norm": 0.5},
    },
    "in batch negatives, not rejected": {
        "sampling": {"distribution": "in_batch", "reject": False},
        "loss": {"log_q": True},
    },
    "exact softmax, l2": {
        "loss": {"name": "softmax"},
        "optim": {"decay": {"scope": "in_batch", "coupling": "l2", "strength": 0.01}},
    },
    "debiased, extra positives, mixture": {
        "loss": {"name": "debiased_infonce", "temperature": 0.5},
        "sampling": {"reject": False, "negatives": 8},
    },
    "hardest of a mixture": {"loss": {"name": "ccl"}, "sampling": {**PAIRS, "distribution": "mixture", "hardest": 3}},
    "own log q": {"sampling": PAIRS, "loss": {"log_q": True}},
    "directau": {"loss": {"name": "directau"}},
    "resn, few of many rows": {
        "loss": {"name": "resn"},
        "model": DOT,
        "sampling": {"shared": False, "negatives": 2},
    },
    "momentum, sweep": {
        "sampling": PAIRS,
        "optim": {"rule": "momentum", "lr": 0.3, "idle": "sweep", "decay": {"scope": "full", "strength": 0.1}},
    },
    "adam, sweep, l2": {
        "loss": {"name": "mine_plus"},
        "optim": {"rule": "adam", "idle": "sweep", "decay": {"scope": "full", "coupling": "l2", "strength": 0.01}},
    },
    # Not by cosine: its gradients grow as rows shrink, and rounding with them.
    "flushed between steps": {
        "loss": {"name": "bpr"},
        "model": {"similarity": "dot", "init": {"std": 1.0}},
        "sampling": {"shared": False, "negatives": 2},
        "optim": {"rule": "adagrad", "lr": 5.0, "decay": {"scope": "full", "strength": 0.19}},
    },
    "lightgcn": {"model": {"name": "lightgcn", "layers": 2}, "optim": {"rule": "adam"}},
    "sweep of rows that stay": {
        "optim": {"idle": "sweep", "lr": 0.05, "decay": {"scope": "in_batch", "strength": 0.5}},
    },
    "distances": {"loss": {"name": "triplet"}, "model": DOT, "sampling": PAIRS},
    # Rows outside the batch move: on the host when they are next read, on the device at each step.
    "adam": {"sampling": {**PAIRS, "negatives": 2}, "optim": {"rule": "adam", "lr": 0.02}},
    "adam, decay in the batch": {
        "sampling": {"shared": False, "negatives": 2},
        "optim": {"rule": "adam", "lr": 0.02, "decay": {"scope": "in_batch", "strength": 2.0}},
    },
    "momentum, l2 in the batch": {
        "sampling": {"negatives": 3},
        "optim": {"rule": "momentum", "lr": 0.3, "decay": {"scope": "in_batch", "coupling": "l2", "strength": 0.2}},
    },
    "lazy adam, l2 of all items and of no users": {
        "sampling": {"shared": False, "negatives": 1},
        "optim": {
            "rule": "lazy_adam",
            "decay": {"scope": "full", "coupling": "l2", "strength": 0.05, "tables": {"users": 0.0}},
        },
    },
    "exact softmax, momentum, decay in the batch": {
        "loss": {"name": "softmax"},
        "optim": {"rule": "momentum", "lr": 0.3, "decay": {"scope": "in_batch", "strength": 0.2}},
    },
}
ROWS_MOVE = list(CASES)[-5:]
# Steps are small: a value that is rounded to the other neighbour then changes the gradients of others by little.
ROUNDED = {
    "row-wise adagrad, full": {"optim": {"rule": "rowwise_adagrad", "decay": {"scope": "full", "strength": 1.0}}},
    "lazy adam, in batch": {"optim": {"rule": "lazy_adam", "decay": {"scope": "in_batch", "strength": 1.0}}},
    "lightgcn": {"model": {"name": "lightgcn", "layers": 2}, "optim": {"rule": "adam"}},
    "adam, sweep, in batch": {
        "optim": {"rule": "adam", "idle": "sweep", "decay": {"scope": "in_batch", "strength": 1.0}},
    },
    "row-wise adagrad, sweep, l2": {
        "optim": {
            "rule": "rowwise_adagrad",
            "idle": "sweep",
            "decay": {"scope": "full", "coupling": "l2", "strength": 0.1},
        },
    },
}
INTERPRETED = [(name, True) for name in list(CASES)[1:16:2]] + [
    ("flushed between steps", True),
    ("sweep of rows that stay", True),
    ("ssm, full", False),
    ("resn, few of many rows", False),
    *((name, True) for name in ROWS_MOVE),
    ("lazy adam, l2 of all items and of no users", False),
]
"""Cases that run without a GPU too."""
EPOCHS = 2
pytestmark = pytest.mark.timeout(600)


@losses.register("pairs_with_margins")
class PairsWithMargins(Loss):
    """Bayesian personalised ranking with a margin of the user and one of the positive, in tables of its own."""

    reads = ("positive_B", "negative_BN")

    def tables(self):
        init = initializers["xavier_normal"]()
        return TableSpec("user_margins", "users", 1, init), TableSpec("item_margins", "items", 1, init, decay=0.01)

    def per_pair(self, step):
        margin_B1 = torch.sigmoid(step.tables["user_margins"] + step.tables["item_margins"])
        return torch.nn.functional.softplus(step.negative_BN + margin_B1 - step.positive_B[:, None]).mean(1)


@losses.register("exchanging")
class Exchanging(Loss):
    """Bayesian personalised ranking with a factor that workers compute together: 1."""

    reads = ("positive_B", "negative_BN")

    def per_pair(self, step):
        with torch.no_grad():
            count = step.exchange.all_sum(step.positive_B.new_tensor([float(len(step.positive_B))]))
        return torch.nn.functional.softplus(step.negative_BN - step.positive_B[:, None]).mean(1) * (count / step.pairs)


@pytest.fixture(scope="module")
def tiny(small) -> Config:
    """Return a configuration of 30 users, of whom one knows all 24 items, and 8 steps an epoch."""
    return changed(
        small,
        data={"planted": {"users": 30, "items": 24, "interactions": 220}, "buckets": 4},
        model={"dim": 6},
        train={"workers": 1, "batch_size": 22, "epochs": EPOCHS},
        sampling={"negatives": 8},
    )


@pytest.fixture(scope="module")
def data(tiny):
    """Return the prepared data of `tiny`."""
    return prepare(tiny.data, log=lambda text: None)


def trained(config, dataset, device):
    """Train epochs; return the trainer and the losses."""
    trainer = Trainer(config, dataset, device)
    source = trainer.source
    batches = itertools.chain.from_iterable(source.batches(epoch, 0, source.steps) for epoch in range(EPOCHS))
    losses = [trainer.train_epoch(epoch, 0, batches, lambda done, loss: None) for epoch in range(EPOCHS)]
    return trainer, losses


@running
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("whole", [True, False])
def test_steps_equal_those_of_the_host(tiny, data, monkeypatch, name, whole):
    if INTERPRETING and (name, whole) not in INTERPRETED:
        pytest.skip("on a GPU")
    for limit in ("_SMALL", "_DENSE"):
        monkeypatch.setattr(f"distrec.training.device_conditions.{limit}", 8 * whole)
    device = equal_on_host_and_device(changed(tiny, **CASES[name]), data)
    if DEVICE.type == "cuda" and name not in ("directau", "resn, few of many rows"):
        assert device.device_steps.captures and device.device_steps._graphs


@running
@pytest.mark.parametrize("name", ROUNDED)
@pytest.mark.parametrize("whole", [True, False])
def test_rows_of_bfloat16_are_rounded_as_on_the_host(tiny, data, monkeypatch, name, whole):
    """A sum in another order may round a value to the other neighbour."""
    for limit in ("_SMALL", "_DENSE"):
        monkeypatch.setattr(f"distrec.training.device_conditions.{limit}", 8 * whole)
    config = changed(tiny, sampling={**PAIRS, "negatives": 2}, optim={"lr": 0.002})
    config = changed(changed(config, **ROUNDED[name]), model={"bfloat16": True, "init": {"std": 1.0}})
    (host, expected), (device, found) = (
        trained(changed(config, **settings), data, where) for settings, where in ((ON_HOST, CPU), (ON_DEVICE, DEVICE))
    )
    assert device.device_steps is not None and found == pytest.approx(expected, rel=1e-4)
    for table, shard in host.tables.items():
        rows_VD, expected_VD = device.tables[table].flush().cpu(), shard.flush()
        assert rows_VD.dtype == torch.bfloat16
        assert (rows_VD == expected_VD).double().mean() > 0.95
        torch.testing.assert_close(rows_VD, expected_VD, rtol=2**-6, atol=1e-3)


@running
def test_a_user_who_knows_every_item_has_no_negatives(tiny, tmp_path):
    everything, others = (
        [(0, item) for item in range(9)],
        [(user, (3 * user + k) % 9) for user in range(1, 8) for k in range(3)],
    )
    for name, pairs in (
        ("train", [*everything, *others]),
        ("test", [(user, (3 * user + 4) % 9) for user in range(1, 8)]),
    ):
        (tmp_path / f"{name}.csv").write_text("user,item\n" + "".join(f"u{user},i{item}\n" for user, item in pairs))
    source = {"source": str(tmp_path / "train.csv"), "test": str(tmp_path / "test.csv"), "valid_fraction": 0}
    config = changed(tiny, data=source, sampling=PAIRS, train={"batch_size": 8})
    dataset = prepare(config.data, log=lambda text: None)
    for loss in ("ssm", "bpr"):
        trainer = equal_on_host_and_device(changed(config, loss={"name": loss}), dataset)
        assert trainer.source.sampler.saturated_U.any()


def equal_on_host_and_device(config, dataset):
    """Train on both, and compare losses, rows and optimizer state; return the trainer of the device."""
    host, expected = trained(changed(config, **ON_HOST), dataset, CPU)
    device, found = trained(changed(config, **ON_DEVICE), dataset, DEVICE)
    assert isinstance(device.device_steps, DeviceSteps) and host.device_steps is None and not device.exchanges
    assert found == pytest.approx(expected, rel=1e-5)
    assert device.diagnostics() == pytest.approx(host.diagnostics(), rel=1e-3)
    for table, optimizer in host.optimizers.items():
        of_table = partial("{}: {}".format, table)
        rows_VD, expected_VD = device.tables[table].flush().cpu(), host.tables[table].flush()
        torch.testing.assert_close(rows_VD, expected_VD, rtol=1e-3, atol=1e-4, msg=of_table)
        state = device.optimizers[table].state()
        for key, value in optimizer.state().items():
            value = value if isinstance(value, torch.Tensor) else torch.tensor(value)
            other = state[key].cpu() if isinstance(state[key], torch.Tensor) else torch.tensor(state[key])
            torch.testing.assert_close(other, value, rtol=2e-3, atol=1e-4, msg=partial(of_table("{} {}").format, key))
    return device


OTHERS = {
    "rows of bfloat16": {
        "sampling": {"shared": False, "negatives": 2},
        "model": {"bfloat16": True, "init": {"std": 1.0}},
        "optim": {"rule": "rowwise_adagrad", "lr": 0.002, "decay": {"scope": "full", "strength": 1.0}},
    },
    "tables of the loss": {"loss": {"name": "pairs_with_margins"}},
    "workers without pairs": {"train": {"batch_size": 3}, "sampling": {"shared": False, "negatives": 2}},
    "a loss that exchanges": {
        "loss": {"name": "exchanging"},
        "train": {"batch_size": 3},
        "sampling": {"shared": False, "negatives": 2},
    },
}
# Of one worker and of two or three, losses with tables and extra positives, rules with and without state.
OF_SEVERAL = [
    "ssm, full",
    "bsl, in batch, popularity",
    "bpr, one negative, adagrad",
    "shared, log q, sgd, full, cosine schedule",
    "exact softmax, l2",
    "debiased, extra positives, mixture",
    "momentum, sweep",
    "flushed between steps",
    *ROWS_MOVE[1:4],
    *OTHERS,
]


def train_and_save(config, dataset, folder):
    """Train; return the losses of the epochs over all workers, the diagnostics, and the bytes sent in a step."""
    with counted_bytes() as sent:
        trainer, losses = trained(config, dataset, CPU)
    assert trainer.exchanges == (trainer.exchange.workers > 1 and config.loss.name == "exchanging")
    trainer.save(folder, {})
    return trainer.exchange.all_sum(losses), trainer.diagnostics(), sum(sent) / (EPOCHS * trainer.source.steps)


@running
@pytest.mark.skipif(not INTERPRETING, reason="several workers on a GPU need several GPUs")
@pytest.mark.parametrize("name", OF_SEVERAL)
@pytest.mark.parametrize("workers", [2, 3])
def test_several_workers_equal_one(tiny, data, tmp_path, name, workers):
    config = changed(tiny, **(CASES | OTHERS)[name])
    one, several = tmp_path / "one", tmp_path / "several"
    one.mkdir(), several.mkdir()
    losses, diagnostics, _ = train_and_save(changed(config, **ON_HOST), data, one)
    by_rank = run_ranks(workers, train_and_save, changed(config, **ON_DEVICE), data, several)
    for found in by_rank:
        assert found[0] == pytest.approx(losses, rel=1e-5)
        assert found[1] == pytest.approx(diagnostics, rel=1e-3)
    sizes = Sizes.of(data)
    planned = step_traffic(config, sizes, workers, step_sizes(config, sizes, workers), gpu=True)
    sent = sum(found[2] for found in by_rank) / workers
    own = 4 * (workers - 1) if name == "a loss that exchanges" else 0
    assert sum(collective.bytes for collective in planned) + own == pytest.approx(sent, rel=0.05)
    partitions = {spec.name: Partition(m, data.manifest.buckets, 1) for spec, m in entities(config, data)}
    (expected, _, _), (saved, _, _) = (load_shard(folder, 0, partitions) for folder in (one, several))
    for table, values in expected.items():
        for key, value in values.items():
            torch.testing.assert_close(saved[table][key], value, rtol=2e-3, atol=1e-4, msg=f"{table} {key}")


def entities(config, dataset):
    """Return each table of a configuration and its number of rows."""
    rows = {"users": dataset.manifest.users, "items": dataset.manifest.items}
    return [(spec, rows[spec.entity]) for spec in config.table_specs]


@running
@pytest.mark.parametrize(
    "sampling",
    [
        {"shared": False, "negatives": 1},
        {"shared": False, "negatives": 13},
        {"shared": False, "negatives": 13, "reject": False},
        {"shared": False, "negatives": 5, "distribution": "popularity"},
        {"shared": False, "negatives": 40, "distribution": "mixture"},
        {"negatives": 21},
        {"negatives": 13, "distribution": "popularity", "beta": 1.0},
    ],
    ids=str,
)
def test_draws_are_those_of_the_host(tiny, data, sampling):
    from distrec.sampling.device_draws import DeviceDraws

    config = changed(tiny, sampling=sampling, run={"seed": 2**63 + 11})
    source = Trainer(changed(config, **ON_HOST), data, CPU).source
    source = replace(source, needs=replace(source.needs, extra_positives=3, log_q=True))
    draws = DeviceDraws(source.sampler, source.interactions_csr, config.run.seed, DEVICE)
    for epoch, first in ((0, 0), (2, 3)):
        pairs, batches = pairs_only(source).batches(epoch, first, 6), source.batches(epoch, first, 6)
        columns = [
            torch.from_numpy(np.concatenate([getattr(batch, name) for batch in pairs])).to(DEVICE)
            for name in ("users_U", "items_U", "ordinal_B")
        ]
        start_S = torch.tensor([0, *np.cumsum([batch.pairs for batch in pairs])[:-1]], device=DEVICE)
        for k, batch in enumerate(batches):
            draws.state.copy_(torch.tensor([k, epoch, first]))
            user_B, item_B, ordinal_B = draws.pairs(columns, start_S, batch.pairs)
            assert np.array_equal(user_B.cpu(), batch.users_U[batch.user_index_B])
            assert np.array_equal(item_B.cpu(), batch.items_U[batch.positive_index_B])
            extra_BM = draws.extra_positives(user_B, ordinal_B, 3)
            assert np.array_equal(extra_BM.cpu().ravel(), batch.items_U[batch.extra_index])
            n = config.sampling.negatives
            drawn = draws.shared_negatives(n) if config.sampling.shared else draws.negatives(user_B, ordinal_B, n)
            assert np.array_equal(drawn.cpu().ravel(), batch.items_U[batch.negative_index])
            if config.sampling.shared:
                assert np.array_equal(np.flatnonzero(draws.known(user_B, drawn).cpu()), batch.masked)


def test_reasons_against_steps_on_the_device(tiny):
    cuda = torch.device("cuda")
    assert "bfloat16" in prevented(changed(tiny, train={"send_bfloat16": True}), 30, 24, cuda, 1)
    assert prevented(tiny, 30, 24, cuda, 2) is None
    assert prevented(tiny, 30, 1_000_000, cuda, 1) is None
    assert "1,000,000 items" in prevented(tiny, 30, 1_000_000, cuda, 2)
    for change, why in (
        ({"model": {"name": "lightgcn"}, "optim": {"rule": "adam"}}, "the graph"),
        ({"loss": {"name": "directau"}}, "whole batch"),
        ({"sampling": {"distribution": "in_batch"}}, "whole batch"),
        ({"optim": {"clip_norm": 1.0}}, "clip_norm"),
    ):
        assert why in prevented(changed(tiny, **change), 30, 24, cuda, 2)
    assert "simplex" in prevented(changed(tiny, model={"name": "simplex"}), 30, 24, cuda, 1)
    assert prevented(changed(tiny, model={"name": "lightgcn"}, optim={"rule": "adam"}), 5_000_000, 24, cuda, 1) is None
    wide = changed(tiny, model={"dim": 64})
    l2 = {"decay": {"scope": "full", "coupling": "l2", "strength": 0.1}}
    for change, what in (({"rule": "adam"}, "rule adam"), (l2, "full l2 decay")):
        lazy, sweep = (changed(wide, optim={**change, "idle": idle}) for idle in ("lazy", "sweep"))
        assert prevented(lazy, 2**20, 2**20, cuda, 1) is None
        assert f"{what} moves all rows, 134,217,792 values" in prevented(lazy, 2**20 + 1, 2**20, cuda, 1)
        assert prevented(lazy, 2**21, 1000, cuda, 2) is None
        assert prevented(sweep, 4_000_000, 4_000_000, cuda, 1) is None
        assert f"{what} moves all 4,000,001 rows" in prevented(sweep, 24, 4_000_001, cuda, 1)
        assert "bfloat16" in prevented(changed(lazy, model={"bfloat16": True}), 30, 24, cuda, 1)
        assert prevented(changed(sweep, model={"bfloat16": True}), 30, 24, cuda, 1) is None
    of_items = changed(wide, optim={"decay": l2["decay"] | {"tables": {"users": 0.0}}})
    assert prevented(of_items, 50_000_000, 2**20, cuda, 1) is None
    assert "values" in prevented(of_items, 30, 2**21 + 1, cuda, 1)
    assert prevented(tiny, 50_000_000, 24, cuda, 1) is None
    occurrences = {"decay": {"scope": "occurrences", "coupling": "l2", "strength": 0.1}}
    assert "occurrences" in prevented(changed(tiny, optim=occurrences), 30, 24, cuda, 1)
    assert "kernels" in prevented(changed(tiny, optim={"kernels": "reference"}), 30, 24, cuda, 1)
    assert "capture" in prevented(changed(tiny, train={"capture": False}), 30, 24, cuda, 1)
    assert "CPU" in prevented(tiny, 30, 24, CPU, 1)


@running
def test_evaluated_slowed_down_saved_and_loaded_between_epochs(tiny, data, tmp_path):
    """A loss with tables of its own; the third epoch replays what the second captured, after flushes."""
    config = changed(
        tiny,
        loss={"name": "pairs_with_margins"},
        optim={"decay": {"scope": "full", "strength": 0.1}, "schedule": {"name": "plateau", "patience": 1}},
        train={"epochs": 4, "batch_size": 60, "watch": "ndcg@20"},
    )

    def three_epochs(settings, device):
        trainer = Trainer(changed(config, **settings), data, device)
        losses, found = [], []
        for epoch in range(3):
            source = trainer.source
            batches = iter(source.batches(epoch, 0, source.steps))
            losses.append(trainer.train_epoch(epoch, 0, batches, lambda done, loss: None))
            found.append(evaluate_part(trainer.scorer, data, Part.TEST, config.eval, trainer.exchange).means())
            trainer.observe([0.3] * (epoch + 1))
            folder = tmp_path / device.type / str(epoch)
            folder.mkdir(parents=True, exist_ok=True)
            trainer.save(folder, {})
            trainer.load(folder)
        return trainer, losses, found

    host, expected, expected_metrics = three_epochs(ON_HOST, CPU)
    trainer, found, found_metrics = three_epochs(ON_DEVICE, DEVICE)
    assert trainer.device_steps is not None and host.optimizers["items"].lr_factor < 1
    assert found == pytest.approx(expected, rel=1e-5)
    for a, b in zip(found_metrics, expected_metrics, strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    for name, table in host.tables.items():
        torch.testing.assert_close(trainer.tables[name].flush().cpu(), table.flush(), rtol=1e-3, atol=1e-4)


@running
@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_finished_trainer_frees_its_steps_and_tables_at_once(tiny, data, bfloat16):
    """A search trains many models in a process, and torch collects no garbage when memory is short."""
    optim = {"decay": {"scope": "full", "strength": 0.1}}
    trainer = Trainer(changed(changed(tiny, **ON_DEVICE), optim=optim, model={"bfloat16": bfloat16}), data, DEVICE)
    held = [weakref.ref(trainer.device_steps), *(weakref.ref(table.stored_VD) for table in trainer.tables.values())]
    gc.disable()
    try:
        del trainer
        assert [reference() for reference in held] == [None] * 3
    finally:
        gc.enable()
