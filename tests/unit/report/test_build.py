"""The report's page of whole runs: what comes first, what a reader may do, and how large it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from perennial.config import RunSpec
from perennial.report import about
from perennial.report.build import page
from perennial.report.html import Page, PageSection, Table, render
from perennial.runs.state import RunState
from perennial.store import open_store
from tests.support.event_factory import AT
from tests.support.measured_run import RELEASE, measured_run
from tests.support.tiny_run import tiny_run

THREE = ("english", "french", "spanish")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("three")
    return page(measured_run(folder, THREE, baseline=str(folder / "other" / "union")), AT)


def _section(page: Page, title: str) -> PageSection:
    return next(section for section in page.sections if section.title == title)


def test_what_came_out_is_first_and_how_it_came_about_is_last(three: Page) -> None:
    assert three.lead == (
        "02-spanish learned 2.73 nats a token of spanish; english lost 0.10 and french lost 0.09."
    )
    assert [section.title for section in three.sections] == [
        "Learned and forgotten", "Every stage on every corpus", "Against retraining", "Load it",
        "Lineage", "Learning rate", "Losses", "Training loss", "Tokens by source",
        "Goodput and restarts", "Settings", "Provenance",
    ]  # fmt: skip


def test_the_page_of_three_stages_is_small_and_names_no_folder(three: Page) -> None:
    html = render(three)
    assert len(html.encode()) < 400_000
    assert not re.search(r"/(tmp|home|root|var)/", html)
    assert "baseline is union" in html, "the last name of the path stays"


def test_the_newest_release_can_be_loaded_by_the_lines_of_the_page(three: Page) -> None:
    code = _section(three, "Load it").code
    assert f'model = AutoModelForCausalLM.from_pretrained("releases/{RELEASE}")' in code


def test_settings_are_those_that_the_run_file_sets(three: Page) -> None:
    (table,) = _section(three, "Settings").tables
    shown = {setting: value for setting, value in table.rows}
    assert shown["replay.share"] == "0.25"
    assert shown["model.architecture"] == "gpt_neox"
    assert "training.zero_stage" not in shown, "it is the default"
    assert not [name for name in shown if name.startswith(("store", "tracking"))]


def test_provenance_has_the_ledgers_end_and_each_corpus_with_its_digest(three: Page) -> None:
    facts, corpora = _section(three, "Provenance").tables
    assert [row[0] for row in facts.rows] == ["made by", "seed", "ledger", "tokenizer"]
    assert re.fullmatch(r"27 events, the last one's sha256 [0-9a-f]{64}", facts.rows[2][1])
    assert [row[0] for row in corpora.rows] == list(THREE)
    assert all(re.fullmatch(r"[0-9a-f]{12}", row[-1]) for row in corpora.rows)


def test_without_a_release_the_page_says_how_one_is_made(tmp_path: Path) -> None:
    section = about.load_it(open_store(tmp_path), RunState())
    assert "`perennial release RUN_FILE` makes one" in section.lead and not section.code


def test_a_bucket_is_named_in_the_lines_that_load_from_it(tmp_path: Path) -> None:
    work = measured_run(tmp_path, ("english",))

    class Bucket:
        url = "s3://models/run"

    (fetch,) = [line for line in about.load_it(Bucket(), work.state).code if "get(" in line]  # type: ignore[arg-type]
    assert f"s3://models/run/releases/{RELEASE}" in fetch


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no file /home/ada/runs/x.yaml: write it", "no file x.yaml: write it"),
        ("at /srv/models/small, its first 3 layers", "at small, its first 3 layers"),
        ("s3://bucket/a/b and https://host/a/b", "s3://bucket/a/b and https://host/a/b"),
        ("9 tokens/s, and/or releases/a/b", "9 tokens/s, and/or releases/a/b"),
    ],
)
def test_absolute_paths_are_shortened_to_their_last_name(text: str, shown: str) -> None:
    section = about.without_folders(PageSection("x", text, tables=[Table(("a",), [(text,)])]))
    assert section.lead == shown
    assert section.tables[0].rows == [[shown]]


def test_a_setting_of_any_kind_is_shown(tmp_path: Path) -> None:
    document = tiny_run(tmp_path) | {"gates": {"max_forgetting": 0.1}}
    document["stages"]["only"] = ["a", "b"]
    (table,) = about.settings(RunSpec.model_validate(document)).tables
    assert ("stages.only", "a, b") in table.rows
    assert ("gates.max_forgetting", "0.1") in table.rows


def _check_many(folder: Path, stages: int) -> None:
    """A page of many stages is not much longer than that of twenty."""
    work = measured_run(folder, [f"corpus-{i:04d}" for i in range(stages)])
    many = page(work, AT)
    html = render(many)
    assert len(html.encode()) < 1_000_000
    for section in many.sections:
        for table in section.tables:
            assert len(table.rows) <= about.MOST_ROWS or section.title == "Settings"
            assert len(table.columns) <= 13
    assert f"{stages - 20:,} rows before these are left out" in html
    assert len(many.lead) < 200


def test_a_page_of_forty_stages_stays_readable(tmp_path: Path) -> None:
    _check_many(tmp_path, 40)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_page_of_a_thousand_stages_stays_readable(tmp_path: Path) -> None:
    _check_many(tmp_path, 1000)
