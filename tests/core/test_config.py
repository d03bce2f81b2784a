"""Reading a configuration, and the messages for errors in one."""

import pytest
import yaml

from distrec.core.config import describe, dump, flat, keys, load, parse
from distrec.core.errors import UserError
from distrec.training.config import Config

REQUIRED = [
    "data.source",
    "data.buckets",
    "model.name",
    "model.dim",
    "loss.name",
    "loss.temperature",
    "sampling.distribution",
    "sampling.beta",
    "sampling.negatives",
    "sampling.shared",
    "sampling.reject",
    "optim.rule",
    "optim.lr",
    "optim.decay.scope",
    "optim.decay.coupling",
    "optim.decay.strength",
    "train.workers",
    "train.epochs",
    "train.batch_size",
    "train.device",
    "eval.k",
    "eval.every",
    "run.dir",
    "run.seed",
    "tracking.uri",
]


def test_the_documented_keys_exist_and_have_help_texts():
    assert set(REQUIRED) <= set(keys(Config))
    assert [key for key, _, _, text in describe(Config) if len(text) < 10] == []


def test_overrides_take_precedence_over_the_file_and_later_over_earlier_ones(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("optim: {lr: 0.5, decay: {scope: full, strength: 0.1}}\n")
    config = load(
        Config, file, ["optim.lr=1e-3", "eval.k=[5,10]", "optim.decay.strength=0.2", "optim.decay.strength=0.3"]
    )
    assert (config.optim.lr, config.eval.k, config.optim.decay.scope, config.optim.decay.strength) == (
        1e-3,
        (5, 10),
        "full",
        0.3,
    )
    assert load(Config, None, ["eval.k=7"]).eval.k == (7,)
    assert load(Config, None, ["eval.k=5,10"]).eval.k == (5, 10)


def test_round_trip_through_dump():
    config = load(Config, None, ["eval.k=[5,10]", "run.dir=somewhere", "optim.lr=3e-4", "loss.name=bpr"])
    assert parse(Config, yaml.safe_load(dump(config))) == config
    assert flat(config)["optim.lr"] == 3e-4


def test_text_stays_text_and_empty_sections_are_defaults(tmp_path):
    words = [
        "data.user_column=1",
        "data.item_column=on",
        "run.dir=2024",
        "tracking.experiment=2024-05-01",
        "tracking.uri=null",
    ]
    (tmp_path / "empty.yaml").write_text("data:\noptim: {lr: 1e-2}\n")
    config = load(Config, tmp_path / "empty.yaml", words)
    assert (config.data.user_column, config.data.item_column) == ("1", "on")
    assert (str(config.run.dir), config.tracking.experiment, config.tracking.uri) == ("2024", "2024-05-01", None)
    assert config.optim.lr == 0.01


def test_configurations_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Config().train.workers = 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.temprature=2", "unknown key 'loss.temprature'; nearest known: loss.temperature"),
        ("optm.lr=2", "unknown key 'optm.lr'; nearest known: optim.lr"),
        ("lr=0.1", "unknown key 'lr'; nearest known: optim.lr"),
        ("optim.decay.strenght=2", "nearest known: optim.decay.strength"),
        ("xyzzy=1", "known here: data, eval, loss, model, optim, run, sampling, tracking, train"),
        ("train.workers=two", "train.workers: .*integer.*'two'"),
        ("train.workers=0", "train.workers: .*greater than or equal to 1.*0"),
        ("train.device=tpu", "train.device: .*'auto', 'cpu' or 'cuda'.*'tpu'"),
        ("loss.name=bprr", "unknown loss 'bprr'; known: bpr, softmax, ssm"),
        ("model.name=mff", "unknown model 'mff'; known: mf"),
        (
            "optim.rule=adm",
            "unknown optimizer rule 'adm'; known: adagrad, adam, lazy_adam, momentum, rowwise_adagrad, sgd",
        ),
        ("loss={name: bpr, log_q: true}", "loss.log_q=true is for ssm; loss.name=bpr ignores it"),
        ("train.batch_size=1", "train.batch_size=1 is less than train.workers=2"),
        ("sampling.negatives=0", "negatives must be at least 1"),
        ("optim.lr=.nan", "optim.lr: .*finite"),
        ("train=3", "train is a section: give its keys, train.KEY=...; got 3"),
        ("train.workers.x=3", "train.workers: .*integer"),
        ("noequals", "must have the form key=value"),
        ("optim.lr=[", "not a valid value"),
        ("eval.k=[]", "eval.k: .*at least 1"),
        ("eval.k=[20,0]", "eval.k.1: .*greater"),
    ],
)
def test_messages_for_errors(override, message):
    with pytest.raises(UserError, match=message):
        load(Config, None, [override])


def test_invalid_files(tmp_path):
    (tmp_path / "gowalla.yaml").write_text("train: [unclosed\n")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="no configuration file .*gowala.yaml; nearest in .*: gowalla.yaml"):
        load(Config, tmp_path / "gowala.yaml")
    (tmp_path / "twice.yaml").write_text("train: {workers: 1}\ntrain: {epochs: 3}\n")
    (tmp_path / "dotted.yaml").write_text("train.workers: 1\n")
    with pytest.raises(UserError, match="twice.yaml is not valid YAML: train given twice"):
        load(Config, tmp_path / "twice.yaml")
    with pytest.raises(UserError, match="write train.workers as train: {workers: ...} in a file"):
        load(Config, tmp_path / "dotted.yaml")
    with pytest.raises(UserError, match="gowalla.yaml is not valid YAML"):
        load(Config, tmp_path / "gowalla.yaml")
    with pytest.raises(UserError, match="is not a configuration file"):
        load(Config, tmp_path / "list.yaml")
    (tmp_path / "empty.yaml").touch()
    with pytest.raises(UserError, match="empty.yaml is empty"):
        load(Config, tmp_path / "empty.yaml")
    with pytest.raises(UserError, match="cannot read"):
        load(Config, tmp_path)


def test_many_negatives_of_a_pair_are_drawn_by_a_thread():
    for negatives, shared, backend in ((800, False, "thread"), (1, False, "ray"), (800, True, "ray")):
        config = parse(Config, {"sampling": {"negatives": negatives, "shared": shared}})
        assert config.stream_backend == backend
        assert parse(Config, {"train": {"stream": "ray"}, "sampling": {"shared": shared}}).stream_backend == "ray"
