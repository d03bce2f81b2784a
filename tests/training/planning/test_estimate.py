"""Plans that do not fit are refused, with changes that do fit; the time follows from the costs."""

import json
import math
from dataclasses import replace

import pytest

from distrec.core.errors import UserError
from distrec.training.driver import train
from distrec.training.planning.cost_model import STREAM, Costs, Network, counts, load_costs, step_seconds
from distrec.training.planning.estimate import Plan, alternatives, memory_note, refusal
from distrec.training.planning.sizes import Sizes, step_sizes
from distrec.training.planning.traffic import step_traffic
from tests.conftest import changed, run_config

GIB = 2**30
LARGE = replace(Sizes.assumed(2 * 10**7, 10**7, 10**8, 64), held_out=10**5)


@pytest.fixture
def plan(small):
    """A plan of 30 million rows of 64 floats with Adam's state: 21.5 GiB, on one machine."""
    return Plan(changed(small, model={"dim": 64}, train={"workers": 1, "batch_size": 4096}), LARGE)


def test_what_would_fit_fits_and_half_of_it_does_not(plan):
    limit = 20 * GIB
    assert plan.certain_bytes == pytest.approx(30e6 * 64 * 4 * 3, rel=0.01) and plan.needed_bytes > limit
    found = dict(alternatives(plan, limit))
    assert all(other.needed_bytes <= limit for other in found.values()) and len(found) >= 2
    (workers,) = [change for change in found if "workers" in change]
    other = found[workers]
    assert workers == f"train.workers={other.workers} on {other.machines} machines"
    fewer = replace(plan.changed(train={"workers": other.workers // 2}), machines=other.machines // 2)
    assert fewer.needed_bytes > limit
    text = refusal(plan, limit, plan.needed_bytes, "the parts")
    assert all(change in text for change in found) and "the machine has 20 GiB" in text


def test_more_workers_than_buckets_need_more_buckets(plan):
    found = dict(alternatives(plan, 2.7 * GIB))
    (change,) = [change for change in found if "workers" in change]
    assert found[change].workers > 64 and f"data.buckets={found[change].workers}" in change


def test_smaller_rows_are_offered_alone_or_together(plan):
    """Rows in half the bytes, with one accumulator, take a sixth of the memory of float32 with Adam."""
    config = plan.config
    lean = changed(config, model={"bfloat16": True}, optim={"rule": "rowwise_adagrad"})
    only = replace(plan, config=lean)
    limit = (
        only.needed_bytes
        + min(
            replace(plan, config=changed(config, **one)).needed_bytes
            for one in ({"model": {"bfloat16": True}}, {"optim": {"rule": "rowwise_adagrad"}})
        )
    ) / 2
    changes = [change for change, _ in alternatives(plan, limit)]
    assert "model.bfloat16=true optim.rule=rowwise_adagrad" in changes and "model.bfloat16=true" not in changes
    # What is lean already is not offered.
    assert not any("optim.rule" in change or "bfloat16" in change for change, _ in alternatives(only, limit / 4))


def test_nothing_fits_a_dense_solver_that_is_too_large(small):
    plan = Plan(changed(small, model={"name": "ease"}), LARGE)
    assert list(alternatives(plan, 100 * GIB)) == []
    with pytest.raises(UserError, match="the model's matrices of 1 worker need .* GiB.*no number of workers"):
        memory_note(plan, 100 * GIB)


def test_train_refuses_only_what_cannot_fit(plan):
    """Estimates are no reason to refuse, and small tables none to note anything."""
    with pytest.raises(UserError, match="not enough memory: tables and optimizer state .* need 21.5 GiB"):
        memory_note(plan, plan.certain_bytes - 1)
    assert memory_note(plan, plan.certain_bytes + 1).startswith("memory may not suffice")
    assert memory_note(plan, plan.needed_bytes + 1) is None
    tiny = replace(plan, sizes=Sizes.assumed(300, 200, 6000, 64))
    assert tiny.needed_bytes > GIB and memory_note(tiny, GIB) is None


def test_a_gpu_holds_tables_and_its_host_the_data(plan):
    on_gpu = replace(plan, gpu=True)
    assert on_gpu.certain_bytes == plan.certain_bytes
    assert on_gpu.needed_bytes < plan.needed_bytes
    assert on_gpu.host_bytes > 8 * 28 * LARGE.interactions  # of each of its 8 streams


def constants(**parts):
    return Costs(origin="a test", device="cpu", constants=parts)


def test_time_is_the_sum_of_terms_and_a_step_waits_for_its_batch(small, dataset):
    config, sizes = changed(small, train={"batch_size": 256}), Sizes.of(dataset)
    step, counted = step_sizes(config, sizes, 1), counts(config, sizes, 1)
    costs = constants(compute={"step": 1e-3, "scores": 1e-8}, update={"values": 1e-9}, **{STREAM: {"pairs": 1e-4}})
    found = step_seconds(costs, config, sizes, 1)
    compute = 1e-3 + 1e-8 * (step.own_scores + step.shared_scores)
    update = 1e-9 * counted["update"]["values"]
    assert (found["compute"], found["update"]) == pytest.approx((compute, update))
    assert counted["update"]["values"] == pytest.approx((step.users + step.items_read) * 16 * 3)  # rows and two moments
    assert sum(found.values()) == pytest.approx(1e-4 * step.pairs)  # the stream is slower
    assert set(found) == {"wait", "look_up", "exchange", "compute", "update"}


def test_a_network_adds_latency_and_bytes_of_the_workers_of_a_machine(small, dataset):
    config, sizes, workers = small, Sizes.of(dataset), 4
    exchanges = step_traffic(config, sizes, workers, step_sizes(config, sizes, workers))
    costs, network = constants(exchange={"bytes": 1e-9}), Network(1e6, 1e-3)
    alone = step_seconds(costs, config, sizes, workers)
    assert step_seconds(costs, config, sizes, workers, 1, network) == alone  # all on one machine
    spread = step_seconds(costs, config, sizes, workers, 2, network)
    for part, ahead in (("exchange", False), ("look_up", True)):
        sent, calls = (sum(getattr(c, what) for c in exchanges if c.ahead is ahead) for what in ("bytes", "calls"))
        away = 2 / 3  # of the three other workers, two are on the other machine; two workers share a network
        assert spread[part] - alone[part] == pytest.approx(sent * away * 2 / 1e6 + calls * 1e-3)


def test_costs_of_a_file(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"mine": constants(update={"step": 1.0}).model_dump()}))
    assert load_costs(str(file), gpu=False)[0] == "mine"
    for text in ("[]", "{", '{"mine": {"origin": 3}}'):
        file.write_text(text)
        with pytest.raises(UserError, match="mine.json"):
            load_costs(str(file), gpu=False)
    with pytest.raises(UserError, match="no costs nowhere .*; known: .*cpu"):
        load_costs("nowhere", gpu=False)


def test_shipped_costs_are_positive_and_say_their_origin():
    for gpu in (False, True):
        name, costs = load_costs(None, gpu)
        values = [value for terms in costs.constants.values() for value in terms.values()]
        assert costs.origin and values and all(0 < value < 1 and math.isfinite(value) for value in values), name


@pytest.mark.timeout(120)
def test_train_refuses_tables_that_exceed_the_memory(ray_cluster, small, runs):
    """500 rows of 67 million floats: before a worker starts."""
    config, notes = run_config(small, runs, "too_large", model={"dim": 2**26}), []
    with pytest.raises(UserError, match="not enough memory: tables and optimizer state of 2 workers need .*model.dim="):
        train(config, on_event=notes.append)
    assert not any("starting 2 workers" in note.get("text", "") for note in notes)
