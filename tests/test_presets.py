"""The run files of configs/: each loads, says what was published, and selects as its header says. No data is read."""

import functools
import re
from pathlib import Path

import pytest
import yaml

from distrec.training.config import Config, load_config
from distrec.tuning.space import make_space
from distrec.tuning.tuner import load_search

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(f for f in CONFIGS.rglob("*.yaml") if f.parent.name != "studies" and not f.name.endswith(".search.yaml"))
PAPERS = [file for file in FILES if file.parent.name == "papers"]
NAME = re.compile(r"(mml|prism|simce|mine)_table\d_(gowalla|yelp2018|ml-1m)_\w+")


@functools.cache
def loaded(file: Path) -> Config:
    return load_config(file)


def header(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines() if line.startswith("#")]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_run_file_loads_and_has_a_figure(file):
    config = loaded(file)
    first, *rest = header(file)
    assert re.search(r"NDCG@20 \d+\.\d\d %", first), first
    assert len(rest) <= 1 and max(map(len, [first, *rest])) <= 120
    # What stops, or keeps the best epoch, looks at validation data; a fixed number of epochs trains on everything.
    assert (config.watched is not None) == (config.data.valid_fraction > 0)


@pytest.mark.parametrize("file", PAPERS, ids=lambda file: file.stem)
def test_a_run_file_of_a_paper_is_named_after_its_table(file):
    config, match = loaded(file), NAME.fullmatch(file.stem)
    assert match, file.stem
    paper, data = match.groups()
    assert config.data.source.split("/")[0] == data
    assert header(file)[0].upper().startswith(f"# {paper.upper()} PAPER, TABLE {file.stem.split('table')[1][0]}")
    assert config.run.seed == (123 if paper == "prism" else 0)
    if "optim" not in config.unused():
        decay = config.optim.decay
        assert config.optim.rule == "adam" and (decay.scope == "none" or decay.coupling == "l2")


def test_run_files_differ():
    """Files of one paper and data set with equal keys would be one row twice."""
    trees = [yaml.safe_dump(yaml.safe_load(file.read_text())) for file in PAPERS]
    assert len(PAPERS) == 81 and len(set(trees)) == len(trees)


def test_a_search_file_loads_with_its_run_file():
    config = load_search(CONFIGS / "gowalla_mf_ssm.yaml", CONFIGS / "gowalla.search.yaml")
    searched = {key_range.key for key_range in make_space(config, config.space).ranges}
    assert searched == {"optim.lr", "loss.temperature", "optim.decay.strength", "sampling.negatives"}
    assert (config.tune.trials, config.tune.stop, config.data.valid_fraction) == (24, "asha", 0.1)
