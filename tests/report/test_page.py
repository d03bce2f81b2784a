"""Reports: their figures are those of the evaluation, their words follow from these, and a browser draws them."""

import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import distrec
from distrec.core.errors import UserError
from distrec.evaluation.strata import ITEM_STRATA
from distrec.report.comparison import compare, item_rows, verdict
from distrec.report.page import report
from distrec.report.run_data import read_run
from distrec.testing.local_run import train_locally
from tests.cli.test_cli import run as command
from tests.conftest import changed

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
RUN_0, RUN_0_DARK = (0x22, 0x66, 0xB8), (0x6A, 0xA9, 0xF0)


@pytest.fixture(scope="module")
def folders(small, tmp_path_factory):
    """Return the folders of a trained run, of one by popularity, and of one on other data."""
    root = tmp_path_factory.mktemp("report")
    cases = {
        "trained": {"train": {"epochs": 6}, "optim": {"lr": 0.1}},
        "popular": {"model": {"name": "pop"}},
        "other": {"model": {"name": "pop"}, "data": {"planted": {"seed": 5}}},
    }
    for name, sections in cases.items():
        train_locally(changed(small, tracking={"enabled": False}, **sections), root / name)
    return {name: root / name for name in cases}


@pytest.fixture(scope="module")
def page(folders, tmp_path_factory):
    """Return the report of the first two runs."""
    return report([folders["trained"], folders["popular"]], tmp_path_factory.mktemp("page") / "report.html")


def test_values_of_users_are_those_of_the_evaluation_and_parts_sum_to_the_whole(folders):
    for folder in folders.values():
        data = read_run(folder, "x", print)
        for name, value in distrec.evaluate(folder).metrics.items():
            assert data.test.values[name.removeprefix("test/")].mean() == pytest.approx(value, abs=1e-8)
        for name in ("recall@20", "ndcg@20"):
            parts = sum(data.test.values[f"{name}/{stratum}"] for stratum in ITEM_STRATA)
            assert parts == pytest.approx(data.test.values[name], abs=1e-12)
        assert data.test.held_out_V.sum() > data.test.hits_V.sum() > 0


def test_the_verdict_says_which_by_how_much_how_surely_and_for_which_items(folders):
    runs = [read_run(folders[name], name, print) for name in ("popular", "trained")]
    (found,) = compare(runs, "ndcg@20")
    better, worse = sorted(runs, key=lambda run: -run.test.values["ndcg@20"].mean())
    a, b = (run.test.values["ndcg@20"] for run in (better, worse))
    assert found.a is better and found.b is worse and found.main.is_clear
    text = " ".join(verdict(found))
    assert f"{better.name} is better than {worse.name}: NDCG@20 {a.mean():.4f} against {b.mean():.4f}" in text
    assert f"better for {(a > b + 1e-12).sum():,} users" in text and "p < 0.0001 (paired t-test over" in text
    assert re.search(r"popular items [+-][\d.]+ \(.*?\), neutral items .*, unpopular items .*\. Most of it:", text)
    (same,) = compare([better, replace(better, name="again")], "ndcg@20")
    assert verdict(same)[0].startswith(f"{better.name} and again do not differ beyond chance")
    rows = item_rows(found)
    assert rows[0][3] > rows[0][4] and rows[-1][3] < rows[-1][4] and item_rows(same) == []


def test_runs_on_other_data_are_not_compared(folders, tmp_path):
    out = report([folders["trained"], folders["other"]], tmp_path / "r.html")
    assert "The runs have different data" in out.read_text() and " is better than " not in out.read_text()


def test_the_page_needs_nothing_else(page):
    text = page.read_text()
    assert not re.search(
        r"""(src|href)\s*=\s*["'](?!#)|@import|url\((?!#)|<script""", text.replace('href="http://www.w3', "")
    )
    for words in ("Metrics", "For which items", "Norm against popularity", "Time", "model.name", "fingerprint"):
        assert words in text
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids)) and "#0505" not in text and len(text) < 2**20


def test_one_run_and_wrong_ones(folders, tmp_path, capsys):
    code, out, _ = command(capsys, "report", str(folders["popular"]), "--out", str(tmp_path / "one.html"))
    assert code == 0 and out.strip() == str(tmp_path / "one.html") and "p-value" in (tmp_path / "one.html").read_text()
    with pytest.raises(UserError, match="a run is given twice"):
        report([folders["popular"]] * 2, tmp_path / "x.html")
    with pytest.raises(UserError, match="a report shows 1 to 6 runs; got 7"):
        report([folders["popular"]] * 7, tmp_path / "x.html")
    with pytest.raises(UserError, match="cannot write .*No such file"):
        report([folders["popular"]], tmp_path / "no" / "x.html")
    with pytest.raises(UserError, match="is not a run folder"):
        report([tmp_path], tmp_path / "x.html")


def screenshot(page, out, *options: str) -> np.ndarray:
    """Return the pixels of the page as Chromium draws it, (height, width, 3)."""
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *options]
    subprocess.run([*words, f"--screenshot={out}", page.as_uri()], check=True, capture_output=True, timeout=120)
    return np.asarray(Image.open(out).convert("RGB")).astype(int)


def pixels(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Return which pixels have a colour."""
    return (abs(image - colour) <= 2).all(2)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.timeout(300)
@pytest.mark.long
def test_a_browser_draws_the_marks_in_light_and_dark_and_on_a_phone(page, tmp_path):
    light = screenshot(page, tmp_path / "light.png", "--window-size=1200,3000")
    dark_mode = "--blink-settings=preferredColorScheme=0"
    dark = screenshot(page, tmp_path / "dark.png", "--window-size=1200,3000", dark_mode)
    assert light[0, 0].min() > 240 and dark[0, 0].max() < 40
    assert pixels(light, RUN_0).sum() > 2000 and pixels(light, RUN_0_DARK).sum() == 0  # bars of the first run
    assert pixels(dark, RUN_0_DARK).sum() > 2000 and pixels(dark, RUN_0).sum() == 0
    frame = tmp_path / "phone.html"
    frame.write_text(f"<body style='margin:0'><iframe src='{page.as_uri()}' width=390 height=3000 style='border:0'>")
    phone = screenshot(frame, tmp_path / "phone.png", "--window-size=600,3000", "--allow-file-access-from-files")
    bars = pixels(phone, RUN_0)
    assert bars.sum() > 2000 and not bars[:, 374:].any()  # within the width, beside a margin of 16
