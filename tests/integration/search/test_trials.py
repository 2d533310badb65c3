"""Trials in a real store and ledger: what is there is not done again, and a stage takes over."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perennial.config import RunSpec, parse
from perennial.config.search import Point
from perennial.controller.context import Workspace
from perennial.controller.reuse_trial import adopt
from perennial.errors import Superseded
from perennial.runs import events
from perennial.runs.stage_planner import decide_stage
from perennial.runs.state import Stage
from perennial.search.trials import Bench
from perennial.store import Store
from perennial.training.checkpoint import manifest as checkpoint
from perennial.training.checkpoint.manifest import CheckpointManifest, folder_of, place_of
from perennial.training.spikes.skips import Skip, record_skip
from tests.support.event_factory import AT, event_of
from tests.support.logged_lines import LoggedLines
from tests.support.tiny_run import tiny_run, write_run

POINT = Point(5e-4, 0.5, "seen")


@pytest.fixture
def lines() -> LoggedLines:
    return LoggedLines()


@pytest.fixture
def work(tmp_path: Path, lines: LoggedLines) -> Workspace:
    """A run that has trained `a`, with `b` ready."""
    document = tiny_run(tmp_path)
    work = Workspace(
        parse(document, RunSpec, ""),
        str(write_run(tmp_path, document)),
        [lines],
    )
    work.ledger.read()
    for kind in ("landed", "ingesting", "ready"):
        work.ledger.append(event_of(kind, work.state, "a"))
    begun = decide_stage(work.spec, work.state, "a", AT, "", reschedule=False)
    work.ledger.append(begun)
    end = folder_of(f"checkpoints/{begun.stage}", 12)
    work.ledger.append(events.Trained(at=AT, corpus="a", checkpoint=end, step=12))
    for kind in ("evaluating", "evaluated", "passed"):
        work.ledger.append(event_of(kind, work.state, "a"))
    for kind in ("landed", "ingesting", "ready"):
        work.ledger.append(event_of(kind, work.state, "b"))
    return work


def _bench(work: Workspace, claim: int = 1) -> Bench:
    state = replace(work.state, stages=list(work.state.stages))
    bench = Bench(
        "t.yaml", "s", work.spec, state, "b", ("a",), "eta_const", 6,
        ("adaptation", "forgetting"), {}, {"a": 3.0}, claim,
    )  # fmt: skip
    work.ledger.append(
        events.Searching(at=AT, name="s", corpus="b", source=bench.source, spec={}, claim=claim)
    )
    return bench


def _tried(trial: str, step: int) -> events.Tried:
    return events.Tried(
        at=AT,
        trial=trial,
        step=step,
        checkpoint=folder_of(f"branches/{trial}", step),
        trained_steps=6,
        values={"adaptation": 3.5, "forgetting": 0.25},
        losses={},
    )


def test_what_the_ledger_has_of_a_trial_is_not_trained_again(work: Workspace) -> None:
    bench = _bench(work)
    trial = bench.branched(POINT)
    work.ledger.append(trial)
    work.ledger.append(_tried(trial.trial, 18))
    events_before = work.ledger.next
    # No Ray runs here: whatever would be trained or measured would fail.
    assert bench.measure(POINT, 6) == {"adaptation": 3.5, "forgetting": 0.25}
    work.ledger.read()
    assert work.ledger.next == events_before


def test_a_search_that_was_taken_over_writes_nothing_more(work: Workspace) -> None:
    bench = _bench(work)
    _bench(work, claim=2)
    events_before = work.ledger.next
    with pytest.raises(Superseded, match="took search s over"):
        bench.measure(POINT, 6)
    work.ledger.read()
    assert work.ledger.next == events_before


def _checkpoint(store: Store, decided: events.Branched, steps: int) -> CheckpointManifest:
    """A committed checkpoint of a trial, with files that only look like one's."""
    folder = folder_of(f"branches/{decided.trial}", decided.step + steps)
    files = {"model.safetensors": b"weights", "metrics.jsonl": b"{}\n"}
    for name, data in files.items():
        store.write(f"{place_of(folder, 'attempt')}/{name}", data)
    entries = {
        name: {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    }
    told: dict[str, Any] = {
        "name": decided.trial, "step": decided.step + steps, "phase": "constant", "eta": 5e-4,
        "schedule": decided.schedule, "mix": decided.mix.to_dict(), "mix_step": steps,
        "tokens_seen": {},
        "optimizer_steps": steps, "world_size": 1, "code_version": "0", "tracking_run": "",
        "attempt": "attempt", "files": entries,
    }  # fmt: skip
    manifest = CheckpointManifest.model_validate(told)
    assert checkpoint.commit(store, folder, manifest)
    return manifest


def _stage(work: Workspace, bench: Bench) -> Stage:
    run = bench.run_spec(POINT)
    decided = decide_stage(run, work.state, "b", AT, "run-id", reschedule=True)
    work.ledger.append(decided)
    return work.state.stages[-1]


def test_a_stage_goes_on_from_the_furthest_trial_of_its_own(
    work: Workspace, lines: LoggedLines
) -> None:
    bench = _bench(work)
    mine, other = (bench.branched(point) for point in (POINT, replace(POINT, eta=1e-3)))
    for decided in (mine, other):
        work.ledger.append(decided)
    _checkpoint(work.store, mine, 3)
    trained = _checkpoint(work.store, mine, 6)
    _checkpoint(work.store, other, 9)
    stage = _stage(work, bench)

    adopt(work, stage)

    assert checkpoint.committed_steps(work.store, stage.folder) == [18]
    folder = folder_of(stage.folder, 18)
    adopted = checkpoint.read_manifest(work.store, folder)
    renamed = {"name": stage.name, "tracking_run": "run-id"}
    assert adopted == trained.model_copy(update=renamed)
    assert work.store.read(adopted.key_of(folder, "model.safetensors")) == b"weights"
    assert lines.lines[-1].endswith("6 steps are not trained again")
    adopt(work, stage)  # once
    assert len(lines.lines) == 1


def test_a_trial_that_left_a_batch_out_is_not_taken_over(work: Workspace) -> None:
    bench = _bench(work)
    decided = bench.branched(POINT)
    work.ledger.append(decided)
    _checkpoint(work.store, decided, 6)
    skip = Skip(step=14, reason="a spike", origins=())
    record_skip(work.store, f"branches/{decided.trial}", skip)
    stage = _stage(work, bench)
    adopt(work, stage)
    assert checkpoint.committed_steps(work.store, stage.folder) == []
