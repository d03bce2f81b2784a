"""Search spaces: what a range may be, conditions, grids, and the file."""

import pytest

from distrec.core.config import parse
from distrec.core.errors import UserError
from distrec.training.config import Config
from distrec.tuning.space import make_space, read_search
from distrec.tuning.tuner import load_search

BASE = parse(Config, {"optim": {"decay": {"scope": "full"}}})
MISTAKES = [
    ({}, "the search space is empty"),
    ({"optim.lrr": {"uniform": [0, 1]}}, "unknown key 'optim.lrr'; nearest known: optim.lr"),
    ({"optim.lr": {"normal": [0, 1]}}, "optim.lr: a range is one of uniform, log_uniform"),
    ({"optim.lr": 0.1}, "optim.lr: a range is one of uniform"),
    ({"optim.lr": {"uniform": [1, 0.5]}}, "optim.lr: uniform needs low < high, got"),
    ({"optim.lr": {"uniform": [0.1]}}, r"optim.lr: uniform needs \[low, high\], got \[0.1\]"),
    ({"optim.lr": {"uniform": "ab"}}, r"optim.lr: uniform needs \[low, high\]"),
    ({"optim.lr": {"uniform": [0.1, ".inf"]}}, r"optim.lr: uniform needs \[low, high\]"),
    ({"optim.lr": {"log_uniform": [0, 1]}}, "optim.lr: log_uniform needs bounds above 0"),
    ({"optim.lr": {"quantised": [0.1, 0.2, 0.5]}}, "optim.lr: quantised needs low < high and a step between"),
    ({"optim.lr": {"uniform": [-1, 1]}}, r"optim.lr: uniform: optim.lr: Input should be greater than 0 \(got -1"),
    ({"sampling.negatives": {"uniform": [1, 9]}}, "sampling.negatives is not a real number, but int: use int"),
    ({"sampling.negatives": {"int": [1, 9.5]}}, "sampling.negatives: int needs whole numbers"),
    ({"optim.rule": {"int": [1, 2]}}, "optim.rule is not a number, but text: use choice"),
    ({"optim.rule": {"choice": ["sgd", "sgdd"]}}, "optim.rule: choice: optim.rule: unknown optimizer rule 'sgdd'"),
    ({"optim.rule": {"choice": []}}, "optim.rule: choice needs a list of different values"),
    ({"loss.margin": {"uniform": [0, 1]}}, "loss.margin is an option of .*, not of ssm"),
    ({"data.test_fraction": {"uniform": [0, 0.5]}}, "data.test_fraction cannot vary between trials"),
    ({"optim.lr": {"choice": [0.1], "when": {"los.name": "bpr"}}}, "optim.lr: when: unknown key 'los.name'"),
    ({"optim.lr": {"choice": [0.1], "when": {"loss.name": "bpr"}}}, "optim.lr: when: loss.name is never bpr"),
    (
        {
            "optim.lr": {"choice": [0.1, 0.2], "when": {"model.dim": 8}},
            "model.dim": {"choice": [8, 16], "when": {"optim.lr": 0.1}},
        },
        "when: conditions go round in a circle",
    ),
]


@pytest.mark.parametrize(("ranges", "text"), MISTAKES)
def test_a_mistake_names_its_key(ranges, text):
    with pytest.raises(UserError, match=text):
        make_space(BASE, ranges)


def test_a_grid_has_each_combination_once_and_follows_conditions():
    ranges = {
        "loss.temperature": {"quantised": [0.1, 0.3, 0.1], "when": {"loss.name": ["ssm", "infonce"]}},
        "loss.name": {"choice": ["ssm", "bpr"]},
        "model.dim": {"int": [8, 24, 8]},
    }
    found = make_space(BASE, ranges).combinations()
    keys = {(v["loss.name"], round(v.get("loss.temperature", 0), 9), v["model.dim"]) for v in found}
    ssm = {("ssm", t, d) for t in (0.1, 0.2, 0.3) for d in (8, 16, 24)}
    assert len(found) == 12 and keys == ssm | {("bpr", 0, d) for d in (8, 16, 24)}
    with pytest.raises(UserError, match="optim.lr: tune.sampler=grid needs a finite number of values"):
        make_space(BASE, {"optim.lr": {"uniform": [0.1, 0.2]}}).combinations()


def test_a_search_file_with_sections_and_dotted_keys(tmp_path):
    text = """
        tune: {trials: 3, resources: {cpu: 1}}
        data.valid_fraction: 0.2
        optim:
          lr: {log_uniform: [1e-4, 1e-1]}
          decay: {scope: full, strength: {log_uniform: [1e-6, 1e-3]}}
    """
    (tmp_path / "s.yaml").write_text(text)
    notes = []
    config = load_search(None, tmp_path / "s.yaml", ["tune.trials=5", "optim.lr=0.01"], notes.append)
    assert (config.tune.trials, config.tune.resources.cpu, config.data.valid_fraction) == (5, 1, 0.2)
    assert config.optim.decay.scope == "full" and config.optim.lr == 0.01
    assert list(config.space) == ["optim.decay.strength"] and "optim.lr is fixed by the command line" in notes[0]
    (only,) = make_space(config, config.space).ranges
    assert (only.low, only.high) == (1e-6, 1e-3)  # YAML takes 1e-6 for a text
    (tmp_path / "s.yaml").write_text("optim.lr: 0.1\noptim: {lr: {uniform: [0.1, 0.2]}}\n")
    with pytest.raises(UserError, match="optim.lr is given twice"):
        read_search(tmp_path / "s.yaml")
    (tmp_path / "s.yaml").write_text("tune: {trial: 3}\noptim.lr: {uniform: [0.1, 0.2]}\n")
    with pytest.raises(UserError, match="unknown key 'tune.trial'; nearest known: tune.trials"):
        load_search(None, tmp_path / "s.yaml")
    (tmp_path / "s.yaml").write_text("optim.lr: {log_unifrm: [0.1, 0.2]}\n")
    with pytest.raises(UserError, match="optim.lr: a range is one of uniform, log_uniform, .* got {'log_unifrm'"):
        make_space(BASE, read_search(tmp_path / "s.yaml")[1])


def test_trials_have_one_worker_unless_told_otherwise(tmp_path):
    (tmp_path / "s.yaml").write_text("optim.lr: {uniform: [0.1, 0.2]}\ntrain.epochs: 3\n")
    (tmp_path / "run.yaml").write_text("train: {batch_size: 64}\n")
    configs = [load_search(tmp_path / "run.yaml", tmp_path / "s.yaml", given) for given in ([], ["train.workers=2"])]
    assert [(c.train.workers, c.train.batch_size, c.train.epochs) for c in configs] == [(1, 64, 3), (2, 64, 3)]


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["tune.metric=test/ndcg@20"], "looks at validation data only"),
        (["tune.metric=accuracy"], "'accuracy' is not a validation metric; write"),
        (["eval.every=0"], "set eval.every to 1 or more"),
        (["optim.schedule.name=plateau", "train.watch=ndcg@20"], "set tune.refit_seeds=0"),
    ],
)
def test_a_search_that_cannot_be_judged_or_refitted(tmp_path, overrides, text):
    (tmp_path / "s.yaml").write_text("optim.lr: {uniform: [0.1, 0.2]}\n")
    with pytest.raises(UserError, match=text):
        load_search(None, tmp_path / "s.yaml", overrides)
