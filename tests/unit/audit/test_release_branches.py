"""`verify` makes the plan of each release again, under its mixture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perennial.audit.checks import FoldedLedger, check_branches
from perennial.config import RunSpec
from perennial.runs.events import Releasing
from perennial.runs.stage_planner import decide_release
from perennial.runs.state import RunState
from tests.support.event_factory import AT, walk
from tests.support.tiny_run import tiny_run


def _story(change: dict[str, Any]) -> FoldedLedger:
    """Return a ledger with a balanced release, whose mix was changed."""
    document = tiny_run(Path("/nowhere"))
    document["release"]["mixture"] = "balanced"
    state = RunState()
    for name in "abc":
        walk(state, name)
    stage = state.stages[-1]
    decided = decide_release(
        RunSpec.model_validate(document), state, stage, stage.last_step, None, AT
    )
    told = decided.model_dump(mode="json")
    told["mix"] |= change
    changed = Releasing.model_validate(told)
    state.apply(changed)
    return FoldedLedger(events=[changed], state=state)


def test_a_release_under_a_mixture_is_made_again_from_the_trunks_history() -> None:
    assert not list(check_branches(_story({})))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"mixture": "seen"}, "mixture seen"),
        ({"mixture": {"a": 1.0, "b": 1.0}}, "takes 11 sequences of a"),
        ({"mixture": "newest"}, "the mixture of 02-c-30-anneal4-balanced cannot be made"),
        ({"mixture": {"a": "many"}}, "cannot be made"),
        ({"mixture": {"z": 1.0}}, "cannot be made"),
        ({"mixture": 3}, "cannot be made"),
    ],
)
def test_a_mixture_that_was_altered_is_found(change: dict[str, Any], problem: str) -> None:
    (finding,) = check_branches(_story(change))
    assert finding.key == "ledger/000000000000.json"
    assert problem in finding.problem
