"""The public names of the package: importable, lazy, typed."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import distrec


def python(code: str) -> str:
    """Run code in a process of its own. Return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_fast_and_loads_no_dependency():
    heavy = ("torch", "ray", "numpy", "numba", "pandas", "pyarrow", "pydantic", "mlflow", "yaml")
    code = f"""
import sys, time
start = time.perf_counter()
import distrec
print(time.perf_counter() - start, *[name for name in {heavy} if name in sys.modules])
"""
    seconds = [float(python(code)) for _ in range(3)]  # a loaded module would follow the number
    assert min(seconds) < 0.05


def test_every_public_name_exists_and_has_a_docstring():
    assert distrec.__all__ == sorted(distrec._MODULES)
    for name in distrec.__all__:
        value = getattr(distrec, name)
        assert value.__name__ == name and value.__module__ == distrec._MODULES[name] and inspect.getdoc(value), name
    assert set(distrec.__all__) <= set(dir(distrec))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'distrec' has no attribute 'fit'"):
        distrec.fit  # noqa: B018


def test_errors_are_those_that_the_package_raises(tmp_path):
    with pytest.raises(distrec.UserError, match="no configuration file"):
        distrec.load_config(tmp_path / "missing.yaml")
    with pytest.raises(distrec.UserError, match="is not a run folder"):
        distrec.evaluate(tmp_path)
    with pytest.raises(distrec.UserError, match="unknown part 'train'; known: test, valid"):
        distrec.evaluate(tmp_path, part="train")


def test_load_config_takes_a_path_in_either_form(tmp_path):
    (tmp_path / "run.yaml").write_text("optim: {lr: 0.5}\n")
    for path in (tmp_path / "run.yaml", str(tmp_path / "run.yaml")):
        config = distrec.load_config(path, ["train.epochs=3"])
        assert isinstance(config, distrec.Config) and (config.optim.lr, config.train.epochs) == (0.5, 3)
    assert distrec.load_config() == distrec.Config()


def test_the_package_is_marked_as_typed():
    assert Path(distrec.__file__).with_name("py.typed").exists()
