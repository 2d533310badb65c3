"""The controller on real corpora through the command line, in this process on the session's Ray."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from perennial.causes import causes
from perennial.cli.app import app
from perennial.config import RunSpec
from perennial.errors import TrainingFailed
from perennial.runs.job_factory import stage_job
from perennial.runs.ledger import Ledger, now
from perennial.runs.retry_policy import failed
from perennial.runs.stage_planner import decide_stage
from perennial.store import open_store
from perennial.training.checkpoint import manifest as checkpoint
from perennial.training.launcher import run_job
from tests.support import trained_run as shared
from tests.support.synthetic_run import ingest_text
from tests.support.tiny_run import SEQUENCE_LENGTH, tiny_run, write_run, write_texts
from tests.support.trained_run import Lineage

pytestmark = pytest.mark.usefixtures("ray_local")
STEPS = 6


def _do(*words: object, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == code, (done.output, done.exception)
    return json.loads(done.stdout)


def _said(*words: object, code: int) -> str:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == code, (done.output, done.exception)
    return " ".join(done.output.split())


def _run_file(folder: Path, **sections: dict[str, Any]) -> Path:
    """A run of one worker and six steps a stage."""
    document = tiny_run(folder)
    changes: dict[str, dict[str, Any]] = {
        "training": {"workers": 1, "micro_batch": 8},
        "stages": {"budget": f"{STEPS} steps"},
        "release": {"sample_tokens": 0},
        "evaluation": {"documents": 3},
    }
    for section in {*changes, *sections}:
        added = changes.get(section, {}) | sections.get(section, {})
        document[section] = document.get(section, {}) | added
    return write_run(folder, document)


@pytest.mark.long
def test_two_corpora_that_landed_become_one_stage_that_verify_proves(tmp_path: Path) -> None:
    run_file = _run_file(tmp_path, stages={"batch_arrivals": {"max_corpora": 2}})
    for name, file in write_texts(tmp_path).items():
        _do("land", run_file, name, file)
    told = _do("run", run_file)
    assert told["trained"] == 1
    state = Ledger(open_store(tmp_path / "store")).read()
    (stage,) = state.stages
    assert (stage.name, stage.corpora) == ("00-help-and-1-more", ("help", "code"))
    rows = {name: corpus.sequences for name, corpus in state.corpora.items()}
    for source in stage.mix.sources:
        part = STEPS * 8 * rows[source.corpus] / sum(rows.values())
        assert abs(source.sequences - part) < 1
    end = checkpoint.read_manifest(open_store(tmp_path / "store"), state.ends[stage.name])
    tokens = {s.corpus: s.sequences * SEQUENCE_LENGTH for s in stage.mix.sources}
    assert end.tokens_seen == tokens
    assert told["tokens"][stage.name]["new_by_corpus"] == tokens
    assert set(told["matrix"]["stages"][0]["losses"]) == {"help", "code"}
    proof = _do("verify", run_file)
    assert (proof["holds"], proof["findings"]) == (True, [])
    assert proof["proved"]["one corpus, one stage (I4)"] == "1 stages of 2 corpora"
    assert _do("status", run_file)["corpora"] == {"help": "passed", "code": "passed"}


@pytest.mark.long
def test_a_mistake_in_a_worker_is_not_tried_again_by_the_controller(tmp_path: Path) -> None:
    document = tiny_run(tmp_path)
    document["training"] |= {"workers": 1, "micro_batch": 8, "max_failures": 0}
    spec = RunSpec.model_validate(document)
    store = open_store(spec.store)
    ledger = Ledger(store)
    manifest = ingest_text(spec, store, ledger, "help", write_texts(tmp_path)["help"])
    ledger.append(decide_stage(spec, ledger.state, "help", now(), "", reschedule=False))
    job = stage_job(spec, ledger.state, ledger.state.stages[0], {"help": manifest})
    with pytest.raises(TrainingFailed) as failure:
        run_job(replace(job, dtype="no-such-type"), lambda _: None)
    assert any(isinstance(link, TypeError) for link in causes(failure.value))
    assert str(failure.value).startswith("00-help: TypeError: ")
    assert failed("help", 0, failure.value, spec.stages, datetime.now(UTC)).next_try is None


def _after_first(lineage: Lineage, folder: Path, **sections: Any) -> Path:
    """The run file of a run whose first stage, of 60 steps, is trained."""
    shutil.copytree(lineage.after_first, folder / "store")
    document = shared.document(folder)
    document["training"] |= {"workers": 1, "micro_batch": 8}
    document["stages"]["budget"] = f"{STEPS} steps"
    document["release"]["sample_tokens"] = 0
    return write_run(folder, document | sections)


@pytest.mark.long
def test_a_gated_stage_is_trained_anew_with_another_share_and_then_accepted(
    lineage: Lineage, tmp_path: Path
) -> None:
    run_file, store = _after_first(lineage, tmp_path), open_store(tmp_path / "store")
    never = "gates.min_gain=50"
    _do("land", run_file, "code", write_texts(tmp_path)["code"])
    told = _do("run", run_file, never, code=1)
    (verdict,) = [each for each in told["gated"]["verdicts"] if not each["holds"]]
    assert (told["gated"]["stage"], verdict["gate"]) == ("01-code", "min_gain")
    losses = Ledger(store).read().losses
    gain = losses["00-help"]["code"].nats_per_token - losses["01-code"]["code"].nats_per_token
    assert verdict["value"] == pytest.approx(gain)
    # Documents paired with themselves: what makes one harder than another cancels.
    assert 0 < verdict["stderr"] < (losses["01-code"]["code"].stderr_nats_per_token or 0.0)
    assert _do("run", run_file, never, code=1)["trained"] == 0
    assert "a gate stopped 01-code" in _said("release", run_file, "--from", "01-code", code=2)

    assert _do("retry", run_file, "code", "--replay", "0.5")["state"] == "ready"
    assert _do("run", run_file, never, code=1)["gated"]["stage"] == "02-code"
    state = Ledger(store).read()
    assert [stage.name for stage in state.stages] == ["00-help", "02-code"]
    assert state.stages[1].mix.replay.share == 0.5
    assert state.stages[1].start == state.abandoned[0].start
    assert store.exists(f"{state.ends['01-code']}/manifest.json")

    told = _do("accept", run_file, "code", "--reason", "it is a trial")
    assert told["state"] == "passed"
    assert _do("run", run_file, never)["gated"] is None
    released = _do("release", run_file)
    assert released["name"].startswith("02-code-66-anneal")
    assert Ledger(store).read().accepted == {"02-code": "it is a trial"}
    assert _do("verify", run_file)["holds"]


@pytest.mark.long
def test_a_task_that_the_stage_does_badly_stops_the_line_with_its_score(
    lineage: Lineage, tmp_path: Path
) -> None:
    (task,) = shared.document(tmp_path)["gates"]["tasks"]
    run_file = _after_first(lineage, tmp_path, gates={"tasks": {task: {"min": 1.5}}})
    _do("land", run_file, "code", write_texts(tmp_path)["code"])
    told = _do("run", run_file, code=1)
    assert told["gated"]["stage"] == "01-code"
    assert told["gated"]["verdicts"]
    for verdict in told["gated"]["verdicts"]:
        assert (verdict["gate"], verdict["bound"], verdict["holds"]) == ("tasks", 1.5, False)
        assert 0 <= verdict["value"] <= 1
    assert _do("accept", run_file, "code", "--reason", "a score is 1 at most")["state"] == "passed"
    assert _do("run", run_file)["gated"] is None


@pytest.mark.long
def test_releases_are_made_as_the_policy_says_and_once(lineage: Lineage, tmp_path: Path) -> None:
    run_file, store = _after_first(lineage, tmp_path), open_store(tmp_path / "store")

    def releases(*policy: str) -> list[str]:
        _do("run", run_file, *policy)
        return [release.name for release in Ledger(store).read().releases]

    kept = checkpoint.committed_steps(store, "checkpoints/00-help")
    assert releases() == []
    each = releases("release.policy=each-stage")
    assert each == ["00-help-60-anneal4"]
    assert releases("release.policy=each-stage") == each
    weekly = ("release.policy=schedule", "release.schedule=7d")
    assert releases(*weekly) == each, "a release was made in this slot"
    # At each multiple of 25 steps: the first checkpoint at or after it that is still there.
    every = releases("release.policy=every", "release.every=25 steps")
    wanted = [min(step for step in kept if step >= multiple) for multiple in (25, 50)]
    assert every == list(dict.fromkeys([*each, *(f"00-help-{step}-anneal4" for step in wanted)]))
    for name in every:
        assert store.exists(f"releases/{name}/manifest.json")
    assert _do("verify", run_file)["holds"]


@pytest.mark.long
def test_the_first_release_by_a_timetable_is_made_at_once(lineage: Lineage, tmp_path: Path) -> None:
    run_file, store = _after_first(lineage, tmp_path), open_store(tmp_path / "store")
    _do("run", run_file, "release.policy=schedule", "release.schedule=0 2 * * 1")
    assert [release.name for release in Ledger(store).read().releases] == ["00-help-60-anneal4"]


@pytest.mark.long
def test_the_loop_measures_the_shift_retries_what_forgot_and_then_waits_for_a_user(
    lineage: Lineage, tmp_path: Path
) -> None:
    run_file, store = _after_first(lineage, tmp_path), open_store(tmp_path / "store")
    loop = [
        "replay.share=auto",
        "gates.max_forgetting=-9",
        "gates.max_retries=1",
        "gates.on_broken=retry-with-more-replay",
    ]
    _do("land", run_file, "code", write_texts(tmp_path)["code"])
    told = _do("run", run_file, *loop, code=1)
    assert told["gated"]["response"] == "no retry: it was trained again 1 of 1 times"
    state = Ledger(store).read()
    (first,), second = state.abandoned, state.stages[-1]
    decision = first.share_decision
    assert decision is not None
    assert decision.model == state.ends["00-help"] == first.start
    losses = state.losses["00-help"]
    assert decision.new.bits_per_byte is not None
    assert decision.new.bits_per_byte.value == pytest.approx(losses["code"].bits_per_byte)
    assert first.mix.replay.share == decision.share == decision.rule.share_of(decision.shift or 0)
    assert (second.name, second.start) == ("02-code", first.start)
    assert second.mix.replay.share == 2 * decision.share
    assert second.share_decision is None
    assert _do("status", run_file)["reasons"] == {}
    assert _do("verify", run_file)["holds"]
