"""A stored schedule whose plug-in is not installed: shown and checked, but not trained."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest

from perennial.audit.checkpoint_checks import check_checkpoint
from perennial.audit.checks import PlannedFolder
from perennial.config import RunSpec, parse
from perennial.errors import InputError
from perennial.report.figures.run import learning_rate
from perennial.runs.job_factory import stage_job
from perennial.runs.stage_planner import decide_release, decide_stage
from perennial.runs.state import RunState
from perennial.runs.summary import position, rate_points
from perennial.schedules import AbsentSchedule, differences, from_dict, to_dict
from perennial.store import open_store
from perennial.training.checkpoint.manifest import CheckpointManifest, folder_of
from tests.support.event_factory import AT, event_of
from tests.support.tiny_run import tiny_run

RECORD = {"kind": "sawtooth", "teeth": 3, "eta_max": 1e-3}


def _trained() -> RunState:
    """Return a run whose trunk trained `a` under the missing schedule, and has `b` ready."""
    state = RunState()
    for kind in ("landed", "ingesting", "ready"):
        state.apply(event_of(kind, state, "a"))
    started = decide_stage(_spec(), state, "a", AT, "", reschedule=False)
    state.apply(started.model_copy(update={"schedule": RECORD}))
    for kind in ("trained", "evaluating", "evaluated", "passed"):
        state.apply(event_of(kind, state, "a"))
    for kind in ("landed", "ingesting", "ready"):
        state.apply(event_of(kind, state, "b"))
    return state


def _spec() -> RunSpec:
    return parse(tiny_run(Path("/nowhere")), RunSpec, "run.yaml")


def _missing(refused: pytest.ExceptionInfo[InputError]) -> bool:
    return refused.value.code == "plugin-missing" and "'sawtooth'" in refused.value.problem


def test_its_record_comes_back_as_it_was() -> None:
    absent = from_dict(copy.deepcopy(RECORD))
    assert isinstance(absent, AbsentSchedule)
    assert to_dict(absent) == RECORD
    assert math.isnan(absent.eta(7))
    assert (absent.phase(7), absent.phase_ends()) == ("unknown", {})
    assert "teeth: 3 -> 4" in differences(absent, from_dict(RECORD | {"teeth": 4}))


def test_its_stage_is_shown_and_neither_trained_nor_released(tmp_path: Path) -> None:
    state = _trained()
    (stage,) = state.stages
    points = rate_points(state.stages)
    assert {point.phase for point in points} == {"unknown"}
    assert learning_rate(points).png().startswith(b"\x89PNG")
    store = open_store(str(tmp_path))
    store.write(f"{folder_of(stage.folder, stage.last_step)}/manifest.json", b"{}")
    where = position(store, state)
    assert where is not None and "'sawtooth'" in where["phase"]
    with pytest.raises(InputError) as refused:
        stage_job(_spec(), state, stage, _Manifests())
    assert _missing(refused)
    with pytest.raises(InputError) as refused:
        decide_release(_spec(), state, stage, stage.last_step, None, AT)
    assert _missing(refused)


def test_the_trunk_goes_on_under_another_schedule_only_where_the_user_insists() -> None:
    state = _trained()
    with pytest.raises(InputError, match="kind: 'sawtooth' -> 'infinite'"):
        decide_stage(_spec(), state, "b", AT, "", reschedule=False)
    assert decide_stage(_spec(), state, "b", AT, "", reschedule=True).schedule["kind"] == "infinite"


def test_verify_names_it_and_checks_the_rest() -> None:
    (stage,) = _trained().stages
    line = PlannedFolder(stage.name, stage.folder, 0, stage.mix, stage.schedule, {}, 128)
    manifest = CheckpointManifest(
        name=stage.name, step=10, phase="rising", eta=1e-3, schedule=RECORD,
        mix=stage.mix.to_dict(), mix_step=10, tokens_seen={}, optimizer_steps=10, world_size=0,
        code_version="0", tracking_run="", attempt=AT, files={},
    )  # fmt: skip
    findings = [str(f) for f in check_checkpoint(f"{stage.folder}/00000010", manifest, line)]
    assert any("no installed package brings its schedule 'sawtooth'" in text for text in findings)
    assert any("tokens_seen" in text for text in findings)
    assert not any("phase" in text or "eta:" in text for text in findings)


class _Manifests(dict[str, Any]):
    """Any corpus as a manifest without shards."""

    def __missing__(self, name: str) -> Any:
        class Manifest:
            shards: tuple[Any, ...] = ()
            erased = False
            vocabulary, end_of_document, token_bytes, sequence_length = 300, 0, 2, 16

        return Manifest
