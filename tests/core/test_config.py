"""Reading a configuration, and the messages for errors in one."""

import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, ClassVar

import pytest
import yaml
from pydantic import Field

from distrec.core.config import dump, flat, load, parse
from distrec.core.errors import UserError
from distrec.core.options import describe, keys
from distrec.core.registry import Registry
from distrec.core.section import OneOf, Part, Section
from distrec.losses import Loss, losses
from distrec.models import SolverConfig, models
from distrec.sharding.table import TableSpec
from distrec.training.config import Config, load_config

REQUIRED = [
    "data.source",
    "data.buckets",
    "model.name",
    "model.dim",
    "model.init.name",
    "model.init.std",
    "loss.name",
    "loss.temperature",
    "loss.log_q",
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
    "optim.decay.tables",
    "train.workers",
    "train.epochs",
    "train.batch_size",
    "train.device",
    "eval.k",
    "eval.every",
    "eval.similarity",
    "run.dir",
    "run.seed",
    "run.imports",
    "tracking.uri",
]


def test_the_documented_keys_exist_and_have_help_texts():
    assert set(REQUIRED) <= set(keys(Config))
    assert [option.key for option in describe(Config) if len(option.text) < 10] == []


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
    words = ["eval.k=[5,10]", "run.dir=somewhere", "optim.lr=3e-4", "loss.name=bpr", "model.init.name=xavier_normal"]
    for overrides in (words, [], ["loss={name: softmax, temperature: 0.2}"], ["data.source=x", "optim.rule=momentum"]):
        config = load(Config, None, overrides)
        assert parse(Config, yaml.safe_load(dump(config))) == config
        assert parse(Config, config.model_dump()) == config
        assert pickle.loads(pickle.dumps(config)) == config
    config = load(Config, None, words)
    assert flat(config)["optim.lr"] == 3e-4
    assert config.model_dump()["loss"] == {"name": "bpr"}
    assert [key for key in flat(config) if key.startswith(("loss.", "model.init."))] == ["model.init.name", "loss.name"]
    assert next(iter(yaml.safe_load(dump(config))["model"])) == "name"


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


@pytest.mark.parametrize(
    "text",
    ["|", ":", "#", "~", " ", ";", "&", "%", "null", "off", "!x", "*a", "{a: b}", "[1, 2]", "'q'", "a: b #c", "", "é"],
)
def test_overrides_of_text_and_paths_are_literal(text, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ana")
    assert load(Config, None, [f"data.item_column={text}"]).data.item_column == text
    if text in ("", "null"):
        config = load(Config, None, [f"run.dir={text}", f"tracking.experiment={text}"])
        assert config.run.dir is config.tracking.experiment is None
    else:
        config = load(Config, None, [f"run.dir=exp {text}", f"tracking.experiment={text}"])
        assert (str(config.run.dir), config.tracking.experiment) == (f"exp {text}", text)


def test_the_home_folder_is_expanded_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text("run: {dir: ~/runs/one}\ndata: {cache: ~}\n".replace("~}", "'~'}"))
    config = load_config(
        "~/run.yaml", ["data.source=~/x", "data.test=~/test.csv", "data.valid=~nobody-of-this-name/v.csv"]
    )
    assert (config.run.dir, config.data.cache) == (tmp_path / "runs" / "one", tmp_path)
    assert config.data.source == str(tmp_path / "x")
    assert (config.data.test, config.data.valid) == (tmp_path / "test.csv", Path("~nobody-of-this-name/v.csv"))
    with pytest.raises(UserError, match="data.cache is empty: give a path"):
        load_config(None, ["data.cache="])


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
        ("loss.temprature=2", "unknown key 'loss.temprature'; nearest known: loss.temperature"),
        ("model.init.stdd=2", "unknown key 'model.init.stdd'; nearest known: model.init.std"),
        ("model.init=normal", "model.init is a section: give its keys, model.init.KEY=...; got 'normal'"),
        (
            "model.init.name=uniform",
            "^model.init.name: unknown initialisation 'uniform'; known: normal, prism, xavier_normal",
        ),
        ("loss.temperature=0", r"loss.temperature: .*greater than 0 \(got 0\)"),
        ("loss=bpr", "loss is a section: give its keys, loss.KEY=...; got 'bpr'"),
        ("loss.name=[ssm]", "unknown loss \"\\['ssm'\\]\"; known"),
        ("xyzzy=1", "known here: data, eval, loss, model, optim, run, sampling, tracking, train"),
        ("train.workers=two", "train.workers: .*integer.*'two'"),
        ("train.workers=0", "train.workers: .*greater than or equal to 1.*0"),
        ("train.device=tpu", "train.device: .*'auto', 'cpu' or 'cuda'.*'tpu'"),
        ("loss.name=bprr", "unknown loss 'bprr'; known: .*bpr, .*softmax, .*ssm"),
        ("model.name=mff", "unknown model 'mff'; known: .*mf"),
        (
            "optim.rule=adm",
            "unknown optimizer rule 'adm'; known: adagrad, adam, lazy_adam, momentum, rowwise_adagrad, sgd",
        ),
        ("loss={name: bpr, log_q: true}", "^loss.log_q is an option of infonce, ssm, not of bpr$"),
        ("loss={name: bpr, temperature: 1}", "^loss.temperature is an option of bsl, .*, softmax, ssm, not of bpr$"),
        (
            "optim.decay={scope: full, tables: {margins: 1}}",
            "decay.tables: no table margins; known: users, items, dense",
        ),
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


def test_an_error_names_the_file_unless_it_is_about_an_override(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("train: {epochs: 0}")
    with pytest.raises(UserError) as error:
        load(Config, file, ["eval.k=0", "train.size=3"])
    of_file, of_value, of_key = sorted(str(error.value).split("\n"))
    assert of_file.startswith(f"{file}: train.epochs") and of_value.startswith("eval.k.0: ")
    assert of_key.startswith("unknown key 'train.size'")


def test_a_cut_off_beyond_the_catalogue_is_noted():
    config = parse(Config, {"eval": {"k": [5, 20, 30]}})
    assert config.eval.notes(30) == [] and config.eval.notes(10)[0].startswith("eval.k=20,30: the data have 10 items")


def test_many_negatives_of_a_pair_are_drawn_by_a_thread():
    for negatives, shared, backend in ((800, False, "thread"), (1, False, "ray"), (800, True, "ray")):
        config = parse(Config, {"sampling": {"negatives": negatives, "shared": shared}})
        assert config.stream_backend == backend
        assert parse(Config, {"train": {"stream": "ray"}, "sampling": {"shared": shared}}).stream_backend == "ray"


class Figure(Part):
    colour: str = "red"
    """Colour of the figure."""


figures: Registry[type[Figure]] = Registry("figure")


@figures.register("circle")
class Circle(Figure):
    """A circle (Euclid et al., Eq. 15). It is round.

    More about it.
    """

    radius: float = Field(1.0, gt=0)
    """Radius of the circle."""
    label: str = "1"
    """Text in its centre."""


@figures.register("sphere")
class Sphere(Circle):
    """A sphere."""

    shade: bool = False
    """Draw a shadow."""


class Fill(Part):
    opaque: bool = True
    """Hide what lies behind."""


fills: Registry[type[Fill]] = Registry("fill")


@fills.register("plain")
class Plain(Fill):
    """One colour."""


@fills.register("striped")
class Striped(Fill):
    """Stripes."""

    angle: int = 45
    """Angle of the stripes."""


@figures.register("square")
class Square(Figure):
    """A square."""

    radius: float = Field(0.0, ge=0)
    """Radius of the corners."""
    fill: Annotated[Fill, OneOf(fills)] = Field(default_factory=lambda: fills["plain"]())
    """Its inside."""


class Drawing(Section):
    figure: Annotated[Figure, OneOf(figures)] = Field(default_factory=lambda: figures["square"](radius=2.0))
    """The figure that is drawn."""
    width: int = 3
    """Width of the lines."""


def test_a_part_is_parsed_by_its_name_or_the_default_one():
    assert Drawing().figure == Square(radius=2.0)
    assert parse(Drawing, {"figure": {"colour": "blue"}}).figure == Square(colour="blue", radius=0.0)
    assert Drawing.model_validate({"figure": {"name": "circle", "radius": 5}}).figure == Circle(radius=5.0)
    assert Drawing(figure=Sphere(shade=True)).figure == Sphere(shade=True)
    assert load(Drawing, None, ["figure.name=circle", "figure.label=2024"]).figure == Circle(label="2024")
    chosen = load(Drawing, None, ["figure.fill.name=striped", "figure.fill.angle=30"])
    assert chosen.figure == Square(fill=Striped(angle=30))
    assert parse(Drawing, yaml.safe_load(dump(chosen))) == chosen
    assert flat(chosen) == {
        "figure.name": "square",
        "figure.colour": "red",
        "figure.radius": 0.0,
        "figure.fill.name": "striped",
        "figure.fill.opaque": True,
        "figure.fill.angle": 30,
        "width": 3,
    }
    with pytest.raises(UserError, match="^figure.fill.angle is an option of striped, not of plain$"):
        load(Drawing, None, ["figure.fill.angle=30"])
    with pytest.raises(UserError, match="^figure.fill.angle: .*valid integer"):
        load(Drawing, None, ["figure.fill={name: striped, angle: steep}"])


def test_an_override_of_the_part_drops_the_options_of_the_former_part_in_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("figure: {name: circle, colour: blue, radius: 5, label: x}\n")

    def loaded(*overrides):
        notes = []
        return load(Drawing, file, overrides, notes.append).figure, notes

    assert loaded() == (Circle(colour="blue", radius=5.0, label="x"), [])
    assert loaded("figure.name=circle", "figure.radius=6")[0].radius == 6.0
    dropped = "figure.name=square: dropped figure.{} of the run file, an option of circle"
    # `radius` too, as that of a square is another option; `colour` is one option of all figures.
    notes = [dropped.format("radius=5"), dropped.format("label=x")]
    assert loaded("figure.name=square") == (Square(colour="blue"), notes)
    assert loaded("figure.name=square", "figure.radius=3") == (Square(colour="blue", radius=3.0), notes)
    assert loaded("figure.name=sphere") == (Sphere(colour="blue", radius=5.0, label="x"), [])
    with pytest.raises(UserError, match=f"^{re.escape(str(file))}: figure.label is an option of circle, sphere, not"):
        loaded("figure.name=square", "figure.label=y")
    with pytest.raises(UserError, match="figure.name: unknown figure 'cube'; known: circle, sphere, square"):
        loaded("figure.name=cube")
    file.write_text("figure: {fill: {name: striped, angle: 30, opaque: false}, radius: 5}\n")
    figure, notes = loaded("figure.fill.name=plain")
    assert figure == Square(radius=5.0, fill=Plain(opaque=False))
    assert notes == ["figure.fill.name=plain: dropped figure.fill.angle=30 of the run file, an option of striped"]
    file.write_text("figure: {radius: 5}\n")
    with pytest.warns(UserWarning, match="figure.name=circle: dropped figure.radius=5 of the run file, an option of s"):
        load(Drawing, file, ["figure.name=circle"])


def test_help_texts_list_each_part_with_its_options():
    options = [tuple(option) for option in describe(Drawing)]
    assert options[:7] == [
        ("figure.name", "circle | sphere | square", "square", "The figure that is drawn.", 0),
        ("figure.name", "", "circle", "A circle (Euclid et al., Eq. 15).", 1),
        ("figure.colour", "text", "red", "Colour of the figure.", 2),
        ("figure.radius", "float", "1.0", "Radius of the circle.", 2),
        ("figure.label", "text", "'1'", "Text in its centre.", 2),
        ("figure.name", "", "sphere", "A sphere.", 1),
        ("figure.colour", "text", "red", "Colour of the figure.", 2),
    ]
    nested = options.index(("figure.fill.name", "plain | striped", "plain", "Its inside.", 2))
    assert options[nested + 1] == ("figure.fill.name", "", "plain", "One colour.", 3)
    assert options[-1] == ("width", "int", "3", "Width of the lines.", 0)
    assert len(set(keys(Drawing))) == len(list(keys(Drawing)))


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["optim.momentum=0.5", "optim.lr=0.1"], ["optim.momentum"]),
        (["loss.name=softmax", "sampling.negatives=5"], ["sampling.negatives"]),
        (
            ["optim.schedule.every_steps=9", "optim.decay.coupling=l2"],
            ["optim.decay.coupling", "optim.schedule.every_steps"],
        ),
        (["loss.name=bsl", "loss.negative_temperature=0.2"], ["loss.negative_temperature"]),
        (["model.name=lightgcn", "model.layers=2", "optim.rule=momentum", "optim.momentum=0.5"], []),
    ],
)
def test_a_value_without_effect_is_noted(overrides, keys):
    notes = []
    load(Config, None, overrides, note=notes.append)
    assert notes == [f"{key} has no effect beside the other values" for key in keys]


def test_an_unknown_key_is_answered_with_the_key_of_that_name():
    for key, nearest in (
        ("train.lr", "optim.lr"),
        ("optim.learning_rate", "optim.lr"),
        ("optim.weight_decay", "optim.decay.strength"),
    ):
        with pytest.raises(UserError, match=f"^unknown key '{key}'; nearest known: {nearest}"):
            load(Config, None, [f"{key}=1"])


def test_dumps_leave_out_what_has_no_effect():
    def absent(*overrides):
        config = load(Config, None, overrides, note=lambda text: None)
        assert yaml.safe_load(dump(config)) == config.model_dump(mode="json")
        assert {key.split(".")[0] for key in flat(config)} == set(config.model_dump())
        return config, {key for key in every if key not in flat(config)}

    every = ("sampling.beta", "sampling.uniform_share", "sampling.negatives", "data.planted.users", "sampling.shared")
    assert absent()[1] == {"sampling.beta", "sampling.uniform_share"}
    assert absent("sampling.distribution=mixture", "data.source=x")[1] == {"data.planted.users"}
    assert absent("sampling.distribution=popularity")[1] == {"sampling.uniform_share"}
    assert absent("sampling.distribution=in_batch")[1] == {
        "sampling.beta",
        "sampling.uniform_share",
        "sampling.negatives",
    }
    config, without = absent("loss.name=softmax", "sampling.negatives=5")
    assert without == set(every) - {"data.planted.users"}
    assert (config.sampling.negatives, config.effective_sampling.negatives) == (5, 0)


class Solver(SolverConfig):
    """A solver."""

    name: ClassVar[str] = "solver"
    strength: float = 1.0
    """Strength of its regularisation."""


class DotLoss(Loss):
    """A loss on dot products, with margins of its own."""

    name: ClassVar[str] = "dot"
    reads = ("extra_BM", "negative_norm2_BN", "log_q_BN")
    similarity = "dot"
    extra_positives: int = 3
    """Number of extra positives."""

    def tables(self):
        return (TableSpec("margins", "users", 1, Config().model.init, 0.5),)


def test_what_does_not_combine_with_a_model_or_a_loss(monkeypatch, tmp_path):
    monkeypatch.setitem(models, "solver", Solver)
    monkeypatch.setitem(losses, "dot", DotLoss)
    config = load(Config, None, ["model.name=solver", "model.strength=2"])
    assert {"loss", "sampling", "optim"} & set(config.model_dump()) == set() and "optim.lr" not in flat(config)
    assert parse(Config, yaml.safe_load(dump(config))) == config
    start = "^model.name=solver is not trained by gradient descent: "
    with pytest.raises(UserError, match=start + "loss.name does nothing; remove it$"):
        load(Config, None, ["model.name=solver", "loss.name=bpr"])
    (tmp_path / "mf.yaml").write_text(
        "model: {dim: 8}\noptim: {decay: {scope: full}, lr: 1}\nsampling: {negatives: 1}\n"
    )
    given = "sampling.negatives, optim.lr, optim.decay.scope do nothing; remove them$"
    with pytest.raises(UserError, match=start.replace("^", "mf.yaml: ") + given):
        load(Config, tmp_path / "mf.yaml", ["model.name=solver"], note=lambda text: None)

    with pytest.raises(
        UserError, match="loss.name=dot is defined on dot similarity, not cosine: set model.similarity="
    ):
        load(Config, None, ["loss.name=dot"])
    words = ["loss.name=dot", "model.similarity=dot"]
    with pytest.raises(UserError, match=r"loss.name=dot corrects .* \(log_q\).*: set sampling.hardest=0"):
        load(Config, None, [*words, "sampling.hardest=4"])
    with pytest.raises(UserError, match="loss.name=dot needs negatives"):
        load(Config, None, [*words, "sampling.negatives=0"])
    needs = load(Config, None, [*words, "loss.extra_positives=5"]).batch_needs
    assert (needs.log_q, needs.extra_positives, needs.history) == (True, 5, 0)
    words += ["optim.decay.scope=full", "optim.decay.tables.margins=0.1"]
    assert load(Config, None, words).optim.decay.strength_of("margins", 0.5) == 0.1
    with pytest.raises(UserError, match="no table marginz; known: users, items, margins, dense"):
        load(Config, None, [*words, "optim.decay.tables.marginz=0.1"])


MODULE = """
from pydantic import Field
from distrec.losses import Loss, losses

@losses.register("own")
class Mine(Loss):
    \"\"\"A loss of one's own.\"\"\"
    label: str = "x"
    reads = ("positive_B",)
"""
LOAD = """
import pickle, sys
from distrec import load_config
sys.path.remove("")  # as in a console script
config = load_config(sys.argv[1] if sys.argv[1:] else None, ["loss.name=own", "loss.label=2024", *sys.argv[2:]])
assert config.loss.label == "2024" and "sampling" not in config.model_dump()
sys.stdout.buffer.write(pickle.dumps(config))
"""
UNPICKLE = """
import pickle, sys
from distrec.core.config import dump, parse
config = pickle.loads(sys.stdin.buffer.read())
assert type(config.loss).__module__ == "my_losses" and config.loss.label == "2024"
assert parse(type(config), config.model_dump()) == config
"""


@pytest.mark.long
def test_modules_named_by_run_imports_register_losses_and_unpickle_in_another_process(tmp_path):
    (tmp_path / "my_losses.py").write_text(MODULE)
    (tmp_path / "run.yaml").write_text("run: {imports: [my_losses]}\nloss: {temperature: 2}\n")

    def python(code, *words, given=None):
        return subprocess.run([sys.executable, "-c", code, *words], input=given, capture_output=True, cwd=tmp_path)

    loaded = python(LOAD, "run.yaml")
    assert loaded.returncode == 0, loaded.stderr.decode()
    assert b"loss.name=own: dropped loss.temperature=2 of the run file, an option of ssm" in loaded.stderr
    other = python(UNPICKLE, given=loaded.stdout)
    assert other.returncode == 0, other.stderr.decode()


def test_a_module_that_cannot_be_imported_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "broken_module_of_a_user.py").write_text("1 / 0\n")
    with pytest.raises(UserError, match="^run.imports: cannot import no_such: ModuleNotFoundError: No module named"):
        load_config(None, ["run.imports=no_such"])
    with pytest.raises(UserError, match="cannot import broken_module_of_a_user: ZeroDivisionError: division by zero"):
        load_config(None, ["run.imports=[json, broken_module_of_a_user]"])
    with pytest.raises(UserError, match="run.imports is a list of values: write run.imports=A,B"):
        load_config(None, ["run.imports=3"])
    assert load_config(None, ["run.imports=json,yaml"]).run.imports == ("json", "yaml")
