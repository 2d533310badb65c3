"""Study files: what they may hold, and the runs that they resolve to."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from perennial import corpora
from perennial.config import parse
from perennial.config.study import StudySpec
from perennial.controller.context import Workspace
from perennial.errors import InputError
from perennial.runs.events import Opened
from perennial.runs.ledger import Ledger
from perennial.store import open_store
from perennial.study.arm_process import retry_failed
from perennial.study.plan import plan
from perennial.study.record import StudyRecord, check_record
from perennial.study.service import RunEnding, _Laboratory, preview, run_study
from tests.support.event_factory import AT, event_of
from tests.support.small_study import read_study, small_study, write_study


def changed(folder: Path, change: dict[str, Any]) -> dict[str, Any]:
    """The small study with fields replaced, by their dotted names."""
    document = copy.deepcopy(small_study(folder))
    for name, value in change.items():
        *outer, last = name.split("/")
        inner: Any = document
        for key in outer:
            inner = inner[int(key)] if isinstance(inner, list) else inner[key]
        inner[last] = value
    return document


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"seeds": [1, 1]}, "", "twice"),
        ({"arms/half/overrides": {"store": "x"}}, "arms.half", "decided by the study"),
        ({"arms/half/overrides": {"corpora.borrow": "x"}}, "arms.half", "decided by the study"),
        (
            {"arms/quarter/releases": {"a": {"overrides": {"replay.share": 0}}}},
            "arms.quarter.releases.a",
            "no field of a release",
        ),
        (
            {
                "arms/quarter/releases": {
                    "a": {"average": "last:2", "overrides": {"release.anneal": "6 steps"}}
                }
            },
            "arms.quarter.releases.a",
            "not annealed",
        ),
        ({"claims/0/arm": "third"}, "", "names third; known are quarter, quarter/short, half"),
        ({"claims/0/measure": "loss"}, "claims.0.measure", "'loss' is refused"),
        ({"claims/0/at_most": None}, "claims.0", "no bound"),
        ({"claims/0/at_least": 1.0}, "claims.0", "nothing lies between"),
    ],
)
def test_a_study_file_that_cannot_be_is_refused(
    tmp_path: Path, change: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InputError) as refused:
        parse(changed(tmp_path, change), StudySpec, "study.yaml")
    assert refused.value.field == field
    assert words in str(refused.value)


def test_every_arm_and_seed_is_a_run_of_its_own_and_the_valuable_come_first(tmp_path: Path) -> None:
    more = {
        "arms/late": {"value": -1, "overrides": {"schedule.kind": "cosine"}},
        "arms/half/overrides": {"replay.share": 0.5, "stages.budget": "7 steps"},
    }
    study = read_study(write_study(tmp_path, changed(tmp_path, more)))
    names = ["quarter/seed-3", "half/seed-3", "quarter/seed-5", "half/seed-5"]
    assert [run.name for run in study.runs] == [*names, "late/seed-3", "late/seed-5"]
    half = study.runs[1].spec
    assert (half.replay.share, str(half.stages.budget), half.seed) == (0.5, "7 steps", 3)
    assert (half.name, half.inbox) == ("small-half", str(tmp_path / "inbox"))
    assert half.store == str(tmp_path / "place" / "runs" / "half" / "seed-3")
    assert study.runs[4].spec.schedule.kind == "cosine"
    assert study.runs[0].releases[0].spec.store == study.runs[0].spec.store


def test_an_override_that_is_wrong_names_the_study_file_and_the_arm(tmp_path: Path) -> None:
    path = write_study(tmp_path, changed(tmp_path, {"arms/half/overrides": {"replay.shar": 1}}))
    with pytest.raises(InputError) as refused:
        read_study(path)
    assert refused.value.where == str(path)
    assert refused.value.field == "arms.half.overrides.replay.shar"
    assert "did you mean share?" in refused.value.remedy


def test_the_digest_is_of_the_study_and_its_base_and_not_of_places(tmp_path: Path) -> None:
    before = read_study(write_study(tmp_path)).digest
    moved = changed(tmp_path, {"place": str(tmp_path / "elsewhere"), "page": "page.md"})
    assert read_study(write_study(tmp_path, moved)).digest == before
    claim = changed(tmp_path, {"claims/0/at_most": 0.1})
    assert read_study(write_study(tmp_path, claim)).digest != before
    base = tmp_path / "run.yaml"
    path = write_study(tmp_path)
    base.write_text(base.read_text().replace("share: 0.25", "share: 0.2"))
    assert read_study(path).digest != before


def test_arms_that_differ_later_share_their_first_stages_and_corpora(tmp_path: Path) -> None:
    more = {
        "arms/faster": {"overrides": {"schedule.eta_max": 2e-3}},
        "arms/longer": {"overrides": {"stages.corpora": {"code": {"budget": "20 steps"}}}},
        "arms/again": {"overrides": {"release.anneal": "6 steps"}},
        "arms/wider": {"overrides": {"corpora.holdout": 0.2}},
        "seeds": [3],
    }
    planned = plan(read_study(write_study(tmp_path, changed(tmp_path, more))))
    found = {p.run.arm: (p.donor, p.shared, p.lender, p.tokens // 1024) for p in planned}
    first = "quarter/seed-3"
    assert found == {
        "quarter": (None, 0, None, 12 + 12 + 4),
        "half": (first, 1, first, 12),
        "faster": (None, 0, first, 12 + 12),
        "longer": (first, 1, first, 20),
        "again": (first, 2, first, 0),
        "wider": (None, 0, None, 12 + 12),
    }


def test_an_average_trains_nothing(tmp_path: Path) -> None:
    one = {"arms/quarter/releases": {"short": {}, "average": {"average": "last:2"}}}
    first = plan(read_study(write_study(tmp_path, changed(tmp_path, one))))[0]
    assert first.released == 4 * 1024


@pytest.mark.parametrize("path", sorted(Path("pipelines/studies").glob("*.yaml")), ids=str)
def test_the_arms_of_a_committed_study_can_be_trained(tmp_path: Path, path: Path) -> None:
    study = read_study(path)
    names = study.runs[0].spec.stages.order
    for name in names:
        file = tmp_path / f"{name}.txt"
        file.write_text("A text. " * 5000)
        corpora.land(open_store(tmp_path / "inbox"), name, [file])
    moved = replace(
        study,
        inbox=str(tmp_path / "inbox"),
        runs=tuple(
            replace(run, spec=run.spec.model_copy(update={"store": f"{tmp_path}/{run.name}"}))
            for run in study.runs
        ),
    )
    planned = plan(moved)
    assert all(its.tokens and not its.unknown for its in planned)
    assert len(planned) == len(study.spec.arms) * len(study.spec.seeds)


def test_two_releases_that_would_be_one_are_refused(tmp_path: Path) -> None:
    both = {"arms/quarter/releases": {"one": {}, "two": {}}, "claims": []}
    with pytest.raises(InputError) as refused:
        plan(read_study(write_study(tmp_path, changed(tmp_path, both))))
    assert refused.value.code == "releases-equal"


def pass_by(statuses: Mapping[str, RunEnding]) -> None:
    """Take how runs stand, and write no page."""


def test_what_does_not_fit_the_budget_is_not_run(tmp_path: Path) -> None:
    small = {"budget": "10s", "tokens_per_second": 1024.0}
    study = read_study(write_study(tmp_path, changed(tmp_path, small)))
    lines: list[str] = []
    statuses = run_study(study, 2, lines.append, pass_by)
    assert {status.state for status in statuses.values()} == {"not run"}
    assert "0.01 h are more than the 0.00 h left" in statuses["quarter/seed-3"].reason
    assert len(lines) == 4
    assert not (tmp_path / "place").exists()
    document = preview(study, 2)
    assert [run["hours"] * 3600 for run in document["runs"]] == pytest.approx([28, 12, 28, 12])


def test_a_process_that_was_killed_inside_a_line_has_ended_too(tmp_path: Path) -> None:
    laboratory = _Laboratory(read_study(write_study(tmp_path)), 1, print, pass_by)
    said = 'printf \'{"job": "a"}\\n{"job": \'; kill -9 $$'
    process = subprocess.Popen(["sh", "-c", said], stdout=subprocess.PIPE, text=True)
    laboratory._read("quarter/seed-3", process)
    messages = [laboratory._messages.get_nowait() for _ in range(2)]
    assert messages == [("quarter/seed-3", {"job": "a"}), ("quarter/seed-3", None)]


def test_an_arm_that_changed_since_it_was_begun_is_refused(tmp_path: Path) -> None:
    run = read_study(write_study(tmp_path)).runs[0]
    StudyRecord("small", "d", run.arm, run.seed, run.settings, {}, "").write(run.store)
    check_record(run.store, "study.yaml", run.arm, run.settings)
    other = changed(tmp_path, {"arms/quarter/overrides": {"replay.share": 0.1}})
    study = read_study(write_study(tmp_path, other))
    with pytest.raises(InputError) as refused:
        run_study(study, 1, print, pass_by)
    assert refused.value.code == "study-arm-changed"
    assert refused.value.field == "arms.quarter"


def test_a_field_that_is_at_its_default_is_no_other_setting(tmp_path: Path) -> None:
    """As a field of a later version is in a run of an earlier one."""
    study = read_study(write_study(tmp_path))
    default = study.runs[0].spec.training.hang_minutes
    spelled = changed(tmp_path, {"arms/quarter/overrides": {"training.hang_minutes": default}})
    overrides = small_study(tmp_path)["arms"]["quarter"].get("overrides", {})
    spelled["arms"]["quarter"]["overrides"] |= overrides
    other = read_study(write_study(tmp_path, spelled))
    assert [run.settings for run in other.runs] == [run.settings for run in study.runs]


def test_a_study_is_the_same_from_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths of an arm, as of the base, are from the folder of the file that names them."""
    arms = {"arms/half/overrides": {"evaluation.tasks": ["tasks/other", "arc_easy"]}}
    write_study(tmp_path, changed(tmp_path, {"run": "run.yaml", **arms}))
    run = yaml.safe_load((tmp_path / "run.yaml").read_text())
    run["evaluation"]["tasks"] = ["tasks/base"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    for task in ("base", "other"):
        (tmp_path / "tasks" / task).mkdir(parents=True)
    seen = []
    for folder, path in (
        (tmp_path, "study.yaml"),
        (tmp_path.parent, f"{tmp_path.name}/study.yaml"),
        (tmp_path / "inbox", str(tmp_path / "study.yaml")),
    ):
        monkeypatch.chdir(folder)
        study = read_study(Path(path))
        tasks = {run.arm: run.spec.evaluation.tasks for run in study.runs}
        assert Path(tasks["quarter"][0]).samefile(tmp_path / "tasks" / "base")
        assert Path(tasks["half"][0]).samefile(tmp_path / "tasks" / "other")
        assert tasks["half"][1] == "arc_easy"
        identities = [(run.settings, study.identity_of(run, {})) for run in study.runs]
        seen.append((study.digest, identities))
    assert seen == seen[:1] * 3
    assert len(set(seen[0][1])) == len(study.runs)


def test_a_study_without_a_corpus_says_how_one_lands(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    for file in sorted((tmp_path / "inbox").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    with pytest.raises(InputError) as refused:
        plan(read_study(path))
    assert refused.value.code == "nothing-landed"


def test_a_run_that_fails_is_reported_with_its_reason(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent" / "tokenizer.json")
    broken = {
        "arms": {"only": {"overrides": {"tokenizer": {"path": absent}}}},
        "claims": [],
        "seeds": [3],
    }
    study = read_study(write_study(tmp_path, small_study(tmp_path) | broken))
    lines: list[str] = []
    endings: list[Mapping[str, RunEnding]] = []
    (status,) = run_study(study, 1, lines.append, endings.append).values()
    assert status.state == "failed"
    assert endings == [{"only/seed-3": status}]
    assert absent in status.reason
    assert "tokenizer.path" in status.reason
    assert lines[0] == "only/seed-3: begins"
    assert lines[-1] == f"only/seed-3: failed: {status.reason}"


def test_a_corpus_that_failed_for_the_last_time_is_tried_again(tmp_path: Path) -> None:
    run = read_study(write_study(tmp_path)).runs[0]
    ledger = Ledger(run.store)
    ledger.append(Opened(at=AT, spec=run.spec.model_dump(mode="json") | {"store": "."}))
    for kind in ("landed", "ingesting", "failed"):
        ledger.append(event_of(kind, ledger.state, "help"))
    work = Workspace(run.spec, "study.yaml")
    retry_failed(work)
    assert ledger.read().corpora["help"].state == "ingesting"
    retry_failed(work)
    assert ledger.read().corpora["help"].event_kinds[-1] == "retried"
