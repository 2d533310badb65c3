"""Claims, and the page of a study, from results that are written down here."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from perennial.config.study import ClaimSpec
from perennial.errors import InputError
from perennial.evaluation import HeldoutLoss
from perennial.evaluation.compare import Model
from perennial.study.kept import Contender, read_kept
from perennial.study.page import render, write_page
from perennial.study.plan import Study, plan
from perennial.study.record import StudyRecord
from perennial.study.results import (
    RunResult,
    StudyResults,
    judge_claim,
    keep_results,
    read_results,
)
from perennial.study.service import RunEnding, preview
from tests.support.small_study import read_study, small_study, write_study

LOSSES = {
    "quarter/seed-3": {"quarter": (4.0, 3.0), "quarter/short": (3.8, 2.9)},
    "half/seed-3": {"half": (3.9, 3.1)},
    "quarter/seed-5": {"quarter": (4.2, 3.2), "quarter/short": (4.02, 3.08)},
    "half/seed-5": {"half": (4.08, 3.32)},
}
DONE = dict.fromkeys(LOSSES, RunEnding("done"))


def contender(name: str, help_nats: float, code_nats: float, tokens: int) -> Contender:
    nats = {"help": help_nats, "code": code_nats}
    losses = {n: HeldoutLoss(n, value, value / 3, 5, 50, 200, 0.1) for n, value in nats.items()}
    model = Model(name, name, f"checkpoints/{name}", tokens, "/" in name, losses)
    return Contender(model, {"help": 3.7, "code": code_nats}, 0.25)


def results_of(study: Study, statuses: Mapping[str, RunEnding], digest: str) -> StudyResults:
    record = StudyRecord("small", digest, "", 0, "", {"perennial": "0.2.0"}, "2 cores", 1, "x")
    runs = []
    for run in study.runs:
        status = statuses[run.name]
        its = LOSSES[run.name] if status.state == "done" else {}
        contenders = {
            name: contender(name, *nats, tokens=24_576 + 4_096 * ("/" in name))
            for name, nats in its.items()
        }
        begun = record if status.state == "done" else None
        runs.append(RunResult(run, status, contenders, begun, 90.0 if begun else 0.0))
    columns = ("help", "code")
    results = StudyResults(study, tuple(runs), columns, True, ())
    judgements = tuple(judge_claim(claim, results.by_seed) for claim in study.spec.claims)
    return StudyResults(study, tuple(runs), columns, True, judgements)


def cells(page: str, first: str) -> list[str]:
    """The cells of the table row that begins with this one."""
    line = next(line for line in page.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


@pytest.mark.parametrize(
    ("values", "bounds", "verdict"),
    [
        ({0: 0.10, 1: 0.11, 2: 0.12}, {"at_most": 0.2}, "holds"),
        ({0: 0.10, 1: 0.11, 2: 0.12}, {"at_most": 0.05}, "does not hold"),
        ({0: 0.10, 1: 0.11, 2: 0.12}, {"at_most": 0.11}, "not decided"),
        ({0: 0.10, 1: 0.11, 2: 0.12}, {"at_least": 0.05, "at_most": 0.2}, "holds"),
        ({0: 0.10}, {"at_most": 0.2}, "not decided"),
        ({}, {"at_most": 0.2}, "not decided"),
    ],
)
def test_a_claim_is_decided_by_the_whole_interval(
    values: dict[int, float], bounds: dict[str, float], verdict: str
) -> None:
    claim = ClaimSpec(says="it is small", arm="one", **bounds)  # type: ignore[arg-type]
    judgement = judge_claim(claim, lambda arm, measure: values)
    assert judgement.verdict == verdict
    assert (judgement.measured is None) == (not values)


def test_a_difference_is_taken_seed_by_seed() -> None:
    by_seed = {"one": {0: 1.0, 1: 2.0, 2: 9.0}, "two": {0: 0.9, 1: 1.9}}
    claim = ClaimSpec(says="one is worse", arm="one", against="two", at_least=0.05)
    judgement = judge_claim(claim, lambda arm, measure: by_seed[arm])
    assert judgement.measured is not None
    assert judgement.measured.count == 2
    assert judgement.measured.mean == pytest.approx(0.1)
    assert judgement.verdict == "holds"


def test_the_page_has_means_intervals_verdicts_and_the_papers_numbers(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path))
    page = render(results_of(study, DONE, study.digest))
    # Student's t with one degree of freedom: 12.706 x 0.2 / sqrt(2) / sqrt(2) = 1.271.
    assert cells(page, "quarter") == [
        *("quarter", "4.100 ± 1.271", "3.100 ± 1.271", "3.600 ± 1.271", "24,576", "25%", "2")
    ]
    assert cells(page, "quarter/short")[4] == "28,672"
    # -0.1 and -0.12 against 0.3 and 0.5: paired, -0.11 ± 12.706 x 0.02 / 2.
    assert cells(page, "1") == [
        "1",
        "half forgets less",
        "forgetting/help: half - quarter",
        "-0.110 ± 0.127",
        "at most 0",
        "2",
        "+0.00 (table 2)",
        "not decided at this size",
    ]
    assert cells(page, "2")[3:] == ["-0.150 ± 0.000", "at most 0", "2", "-", "**holds**"]
    assert "Not run" not in page
    assert "has changed" not in page
    for words in ("perennial study", study.digest[:12], "seeds: 3, 5", "0.10 hours", "2 cores"):
        assert words in page
    assert "`replay.share=0.5`" in page
    assert "quarter/seed-3 1" in page
    prose = [line for line in page.splitlines() if not line.startswith(("|", "#", "!"))]
    assert max(map(len, prose)) <= 100


def test_the_page_says_what_was_not_run_and_that_the_study_changed(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path))
    statuses = DONE | {
        "half/seed-5": RunEnding("not run", "0.5 h are more than the 0.1 h left"),
        "quarter/seed-5": RunEnding("failed", "it broke"),
    }
    page = render(results_of(study, statuses, "0123456789abcdef"))
    assert cells(page, "half/seed-5") == ["half/seed-5", "0.5 h are more than the 0.1 h left"]
    assert cells(page, "quarter/seed-5") == ["quarter/seed-5", "failed: it broke"]
    assert "`0123456789ab`" in page
    assert "2 of 4 runs were begun" in page
    assert cells(page, "1")[3:] == ["-0.100", "at most 0", "1", "+0.00 (table 2)",
                                    "not decided at this size"]  # fmt: skip


def test_the_page_is_written_with_its_pictures(tmp_path: Path) -> None:
    document = copy.deepcopy(small_study(tmp_path)) | {"page": str(tmp_path / "science.md")}
    study = read_study(write_study(tmp_path, document))
    place = write_page(results_of(study, DONE, study.digest), None)
    assert place == str(tmp_path / "science.md")
    page = (tmp_path / "science.md").read_text()
    for picture in ("science-losses.png", "science-claims.png"):
        assert f"]({picture})" in page
        assert imread(io.BytesIO((tmp_path / picture).read_bytes())).shape[1] == 900


def test_what_runs_came_to_is_kept_for_another_machine(tmp_path: Path) -> None:
    document = small_study(tmp_path) | {"results": str(tmp_path / "kept.json")}
    study = read_study(write_study(tmp_path, document))
    here = results_of(study, DONE | {"half/seed-5": RunEnding("not run", "no time")}, study.digest)
    keep_results(here)
    keep_results(here)

    planned = {its.run.name: its for its in plan(study)}
    assert [name for name, its in planned.items() if its.kept is None] == ["half/seed-5"]
    assert planned["half/seed-5"].donor is None  # its stages are on the other machine
    assert [run["state"] for run in preview(study, 1)["runs"]] == ["kept"] * 3 + ["missing"]
    there = read_results(study, {its.run.name: its.status for its in here.runs})
    assert render(there) == render(here)

    other = read_study(write_study(tmp_path, document | {"arms": other_shares(document["arms"])}))
    assert [its.run.arm for its in plan(other) if its.kept is not None] == ["quarter"] * 2
    help_text = next((tmp_path / "inbox" / "help").glob("*.jsonl"))
    help_text.write_bytes(help_text.read_bytes() * 2)
    assert not any(its.kept for its in plan(study))


def other_shares(arms: dict[str, Any]) -> dict[str, Any]:
    """Arms of which `half` replays more."""
    return arms | {"half": {"overrides": {"replay.share": 0.6}}}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 2, "runs": {}}', '{"format": 1, "runs": {"a": {}}}']
)
def test_damaged_results_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "kept.json").write_text(text)
    with pytest.raises(InputError, match="no results of a study") as refused:
        read_kept(str(tmp_path / "kept.json"))
    assert refused.value.code == "study-results-damaged"
    assert (tmp_path / "kept.json").read_text() == text


def test_a_page_without_any_result_has_no_picture(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path))
    statuses = dict.fromkeys(LOSSES, RunEnding("not run", "no time"))
    place = write_page(results_of(study, statuses, ""), None)
    assert place == str(tmp_path / "place" / "study.md")
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["study.md"]
    assert cells((tmp_path / "place" / "study.md").read_text(), "half")[1:] == [*"-----", "0"]
