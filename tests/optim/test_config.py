"""Settings that are refused, and the messages."""

from itertools import product

import pytest
import yaml
from pydantic import ValidationError

from distrec.core.config import dump, flat, load, parse
from distrec.core.errors import UserError
from distrec.core.options import describe
from distrec.optim.config import DecayConfig, OptimConfig
from distrec.optim.rules import RULES
from tests.optim.cases import MODES, config


def test_the_defaults_and_every_rule_with_every_scope_and_coupling_are_accepted():
    OptimConfig()
    for rule, (scope, coupling) in product(RULES, MODES):
        config(rule, scope, coupling)


@pytest.mark.parametrize("scope", ["in_batch", "full"])
@pytest.mark.parametrize(("lr", "strength"), [(0.5, 2.0), (1.0, 1.0), (0.1, 50.0)])
def test_decay_of_a_whole_row_in_a_step_is_refused(scope, lr, strength):
    with pytest.raises(UserError, match="must be below 1"):
        parse(OptimConfig, {"rule": "sgd", "lr": lr, "decay": {"scope": scope, "strength": strength}})
    with pytest.raises(ValueError, match="must be below 1"):
        OptimConfig(lr=lr, decay=DecayConfig(scope=scope, strength=strength))
    OptimConfig(lr=lr, decay=DecayConfig(scope=scope, strength=strength * 0.999 * min(1, 1 / (lr * strength))))


def test_strength_without_scope_is_refused():
    with pytest.raises(UserError, match="nothing decays; choose scope in_batch or full, or set strength to 0"):
        parse(OptimConfig, {"decay": {"strength": 0.1}})


def test_a_table_may_have_its_own_strength_within_the_same_bounds():
    decay = DecayConfig(scope="full", strength=0.1, tables={"users": 0.0})
    assert (decay.strength_of("users"), decay.strength_of("items")) == (0.0, 0.1)
    assert (decay.strength_of("users", 0.5), decay.strength_of("items", 0.5), decay.strength_of("items", 0.0)) == (
        0.0,
        0.5,
        0.0,
    )
    with pytest.raises(UserError, match=r"lr \* decay.tables.items is 2 and must be below 1"):
        parse(OptimConfig, {"lr": 0.5, "decay": {"scope": "full", "tables": {"items": 4.0}}})
    with pytest.raises(UserError, match="decay.tables.users is 0.1, but decay.scope is none and nothing decays"):
        parse(OptimConfig, {"decay": {"tables": {"users": 0.1}}})
    with pytest.raises(UserError, match="decay.tables.users: .*greater than or equal to 0"):
        parse(OptimConfig, {"decay": {"scope": "full", "tables": {"users": -0.1}}})
    chosen = load(OptimConfig, None, ["decay.scope=full", "decay.tables.users=0.1", "decay.tables.items=0.2"])
    assert chosen.decay.tables == {"users": 0.1, "items": 0.2}
    assert load(OptimConfig, None, ["decay.scope=full", "decay.tables={users: 0.1}"]).decay.tables == {"users": 0.1}


def test_dumps_hold_the_hyperparameters_of_the_rule_and_schedule_only():
    common = {
        "rule",
        "lr",
        "decay.scope",
        "decay.strength",
        "decay.tables",
        "clip_norm",
        "idle",
        "kernels",
    }
    for rule, schedule, own in (
        ("sgd", "constant", set()),
        ("momentum", "linear", {"momentum", "schedule.final_fraction"}),
        ("adagrad", "cosine", {"eps", "schedule.final_fraction"}),
        ("sgd", "plateau", {"schedule.final_fraction", "schedule.factor", "schedule.patience"}),
        ("adam", "step", {"beta1", "beta2", "eps", "schedule.every_steps", "schedule.factor"}),
    ):
        chosen = parse(OptimConfig, {"rule": rule, "schedule": {"name": schedule}})
        assert set(flat(chosen)) == common | {"schedule.name", "schedule.warmup_steps"} | own
        assert parse(OptimConfig, yaml.safe_load(dump(chosen))) == chosen


def test_an_unknown_rule_lists_the_known_ones():
    with pytest.raises(
        UserError,
        match="rule: unknown optimizer rule 'adamw'; known: adagrad, adam, lazy_adam, momentum, rowwise_adagrad, sgd",
    ):
        parse(OptimConfig, {"rule": "adamw"})


@pytest.mark.parametrize(
    "values",
    [{"lr": 0}, {"lr": -1}, {"beta1": 1}, {"beta2": -0.1}, {"eps": 0}, {"decay": {"strength": -1}}]
    + [{"decay": {"scope": "all"}}, {"schedule": {"factor": 0}}, {"schedule": {"final_fraction": 2}}],
)
def test_values_out_of_range_are_refused(values):
    with pytest.raises(ValidationError):
        OptimConfig.model_validate(values)


def test_every_field_has_its_help():
    assert [option.key for option in describe(OptimConfig) if not option.text] == []
