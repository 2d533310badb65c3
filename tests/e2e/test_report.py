"""`perennial report` on a real run, looked at in a real browser."""

from __future__ import annotations

import csv
import shutil
from html import unescape
from pathlib import Path
from statistics import fmean
from typing import Literal

import pytest
from matplotlib.image import imread

from perennial.cli.console import ProgressScreen
from perennial.config import load_run
from perennial.controller.context import Workspace
from perennial.errors import InputError
from perennial.evaluation.kept_samples import read_samples
from perennial.report.build import page as page_of
from perennial.report.compare import compare
from perennial.report.html import PageSection
from perennial.runs.ledger import Ledger, now
from perennial.runs.worker_starts import read_starts
from tests.support.browser import CHROMIUM, look_at_page
from tests.support.cli import perennial, perennial_json
from tests.support.tiny_run import tiny_run, write_run, write_texts
from tests.support.trained_run import STEPS, Lineage


@pytest.fixture(scope="module")
def page(lineage: Lineage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("report") / "report.html"
    told = perennial_json("report", lineage.run_file, "--output", str(target))
    assert told["page"] == str(target)
    assert lineage.store.read("report/report.html") == target.read_bytes()
    return target


def test_the_page_tells_the_run(lineage: Lineage, page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    matrix = lineage.evaluation["matrix"]
    for stage in matrix["stages"]:
        assert stage["stage"] in html
        assert f"{stage['adaptation']:.3f}" in html
        for loss in stage["losses"].values():
            assert f"{loss['bits_per_byte']:.3f}" in html
    for corpus, stderr in matrix["stages"][-1]["forgetting_stderr"].items():
        assert stderr is not None, "forgetting has a paired standard error"
        forgotten = matrix["stages"][-1]["forgetting"][corpus]
        assert f"{corpus} {forgotten:+.3f} ± {stderr:.3f}" in html
    for heading in (
        "Lineage", "Learning rate", "Losses", "Training loss", "Every stage on every corpus",
        "Learned and forgotten", "Tokens by source", "Goodput and restarts", "Gates", "Tasks",
        "Samples",
    ):  # fmt: skip
        assert f">{heading}</h2>" in html
    last = matrix["stages"][-1]
    gained = matrix["stages"][-2]["losses"]["code"]["nats_per_token"] - last["adaptation"]
    lead = f"<h1>01-code learned {gained:.2f} nats a token of code; help "
    assert lead in html
    state = Ledger(lineage.store).read()
    for sample in read_samples(lineage.store, state.stage_samples["00-help"]):
        assert sample.prompt in unescape(html)
    for name in ("train-loss", "time", "matrix", "losses", "learning-rate", "tokens", "transfer"):
        assert lineage.store.read(f"report/{name}.png").startswith(b"\x89PNG")
    # A worker group was started once for each stage, and kept.
    assert [start.step for start in read_starts(lineage.store, "checkpoints/01-code")] == [STEPS]


def _workspace(run_file: Path, *overrides: str) -> Workspace:
    work = Workspace(load_run(run_file, overrides), str(run_file), [ProgressScreen()])
    work.ledger.read()
    return work


def test_the_page_tells_the_gap_to_the_baseline(lineage: Lineage, tmp_path: Path) -> None:
    def against_retraining() -> PageSection:
        work = _workspace(lineage.run_file, f"evaluation.baseline={tmp_path / 'retrained'}")
        sections = page_of(work, now()).sections
        return next(each for each in sections if each.title == "Against retraining")

    assert "Nothing was measured there yet that compares" in against_retraining().lead
    shutil.copytree(lineage.store.url, tmp_path / "retrained")
    (table,) = against_retraining().tables
    assert [row[0] for row in table.rows] == ["help", "code", "average"]
    assert {row[-1] for row in table.rows} == {"+0.000 ± 0.000"}


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize(
    ("media", "width", "dark"),
    [("screen", 1000, False), ("screen", 400, True), ("print", 720, True)],
)
def test_a_browser_draws_it(
    page: Path, tmp_path: Path, media: Literal["screen", "print"], width: int, dark: bool
) -> None:
    shot = tmp_path / "page.png"
    fetched = look_at_page(page.as_uri(), shot, media, width, dark)
    assert {url.partition(":")[0] for url in fetched} <= {"file", "data"}, "no network"
    pixels = imread(shot)[..., :3]
    assert pixels.shape[1] == width, "nothing is wider than the screen"
    corner = pixels[2, 2].mean()
    on_paper = media == "print" or not dark
    assert corner > 0.9 if on_paper else corner < 0.2, "the paper has the asked-for colour"
    # Okabe and Ito's blue fills the curves and bars: the pictures were drawn.
    blue = abs(pixels - [0x00 / 255, 0x72 / 255, 0xB2 / 255]).max(axis=2) < 0.05
    assert blue.sum() > 500


@pytest.mark.long
def test_a_run_beside_its_twin_has_no_gap_and_saves_a_third(
    lineage: Lineage, tmp_path: Path
) -> None:
    twin = tmp_path / "twin.yaml"
    twin.write_text(f"base: {lineage.run_file}\nname: twin\nstore: {tmp_path / 'twin'}\n")
    shutil.copytree(lineage.store.url, tmp_path / "twin")
    output = tmp_path / "compare.html"
    told = perennial_json("compare", lineage.run_file, twin, "--output", output)
    assert (told["unit"], told["corpora"]) == ("nats per token", ["help", "code"])
    assert [run["run"] for run in told["runs"]] == ["tiny", "twin"]
    trunk, release = told["gaps"]
    assert trunk["model"] == trunk["against"]["model"] == "01-code"
    assert release["model"] == lineage.release["name"]
    for gap in told["gaps"]:
        for change in (*gap["corpora"].values(), gap["average"]):
            assert change == {"nats_per_token": 0.0, "stderr": 0.0}
    compute = told["runs"][0]["compute"]
    tokens = 8 * 128
    assert compute["tokens"] == (2 * STEPS + 4) * tokens
    assert compute["retrained_tokens"] == (STEPS + 2 * STEPS + 4) * tokens
    assert compute["saved"] == pytest.approx(1 - 124 / 184)
    assert compute["flops"] == compute["tokens"] * compute["flops_per_token"] > 0
    html = output.read_text(encoding="utf-8")
    lead = "At equal tokens tiny is +0.000 ± 0.000 nats per token from twin on average"
    for words in (lead, "tiny, and what else could have been done", "+0.000 ± 0.000", "twin"):
        assert words in html
    with pytest.raises(InputError) as refused:
        compare([_workspace(lineage.run_file), _workspace(lineage.run_file)])
    assert refused.value.code == "store-twice"


@pytest.mark.long
def test_two_seeds_are_one_arm_with_an_interval(ray_head: dict[str, str], tmp_path: Path) -> None:
    document = tiny_run(tmp_path)
    document["stages"]["budget"] = "6 steps"
    run_file, text = write_run(tmp_path, document), write_texts(tmp_path)["help"]
    for seed in (3, 4):
        overrides = (f"seed={seed}", f"store={tmp_path / str(seed)}", f"inbox={tmp_path / 'inbox'}")
        perennial("land", run_file, "help", text, *overrides)
        perennial("run", run_file, *overrides, env=ray_head)
    # A run is named by its run file or by its store.
    stores = (tmp_path / "3", tmp_path / "4")
    lone = perennial_json("compare", stores[0])
    assert lone["arms"][0]["models"][0]["losses"]["average"]["half_width"] is None
    table, latex = tmp_path / "compare.csv", tmp_path / "compare.tex"
    told = perennial_json("compare", *stores, "--csv", table, "--latex", latex)
    assert (told["csv"], told["latex"]) == (str(table), str(latex))
    (arm,) = told["arms"]
    assert (arm["arm"], arm["runs"]) == ("tiny", {"3": "tiny (seed=3)", "4": "tiny (seed=4)"})
    assert told["gaps"] == told["seed_gaps"] == [], "there is nothing to hold it against"
    (model,) = arm["models"]
    assert (model["model"], model["seeds"]) == ("00-help", [3, 4])
    losses = [run["models"][-1]["losses"]["help"]["nats_per_token"] for run in told["runs"]]
    assert losses[0] != losses[1]
    mean = model["losses"]["corpora"]["help"]
    assert mean["mean"] == pytest.approx(fmean(losses))
    # Half the difference of two values, times the quantile of one degree of freedom.
    assert mean["half_width"] == pytest.approx(12.7062 * abs(losses[0] - losses[1]) / 2, rel=1e-4)
    shown = perennial("compare", *stores)
    assert "mean over seeds ± 95% interval" in shown and "│     2 │" in shown
    lines = list(csv.DictReader(table.read_text().splitlines()))
    assert {line["seeds"] for line in lines} == {"2"}
    assert r"\toprule" in latex.read_text() and r"$\pm$" in latex.read_text()


def test_nothing_landed_is_nothing_to_report(tmp_path: Path) -> None:
    run_file = Path(__file__).parents[2] / "pipelines" / "quickstart.yaml"
    told = perennial("report", run_file, f"store={tmp_path / 'store'}", code=2)
    assert "nothing has landed" in told
    with pytest.raises(InputError, match=r"use `perennial run") as refused:
        compare([_workspace(run_file, f"store={tmp_path / 'empty'}")])
    assert refused.value.code == "nothing-evaluated"
