"""The plan of a release that is an average: its checkpoints, weights and name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.audit.averages import check_averages
from perennial.audit.checks import FoldedLedger
from perennial.config import RunSpec
from perennial.runs.averaging import read_average, weights_of
from perennial.runs.events import Releasing
from perennial.runs.stage_planner import decide_average
from perennial.runs.state import RunState
from tests.support.event_factory import AT, walk
from tests.support.refusal import refused
from tests.support.tiny_run import tiny_run

SPEC = RunSpec.model_validate(tiny_run(Path("/nowhere")))


def _state() -> RunState:
    state = RunState()
    for name in "ab":
        walk(state, name)
    return state


def _decide(state: RunState, text: str) -> Releasing:
    first, second = state.stages
    held = [(first, 5), (first, 10), (second, 15), (second, 20)]
    return decide_average(SPEC, held, read_average(text), AT)


@given(st.integers(2, 50), st.sampled_from(["uniform", "linear", "1-sqrt"]))
def test_weights_are_those_of_the_decay_that_they_stand_for(count: int, weighting: str) -> None:
    weights = weights_of(weighting, count)
    shares = [weight / sum(weights) for weight in weights]
    assert all(share > 0 for share in shares)
    # The factor on what was learned between checkpoint j - 1 and j: all later shares together.
    factors = [sum(shares[j:]) for j in range(1, count)]
    for j, factor in enumerate(factors, 1):
        right = {
            "uniform": 1 - j / count,
            "linear": 1 - j * (j + 1) / (count * (count + 1)),
            "1-sqrt": 1 - (j / count) ** 0.5,
        }[weighting]
        assert factor == pytest.approx(right, abs=1e-9)


def test_the_last_checkpoints_are_averaged_across_stages_and_told() -> None:
    state = _state()
    decided = _decide(state, "last:3")
    assert decided.name == "01-b-20-average3"
    assert (decided.stage, decided.step, decided.source) == (
        "01-b",
        20,
        "checkpoints/01-b/00000020",
    )
    assert decided.average is not None
    assert str(decided.average) == "average of the trunk at steps 10 of 00-a and 15, 20 of 01-b"
    assert [*decided.average.sources] == [
        "checkpoints/00-a/00000010",
        "checkpoints/01-b/00000015",
        "checkpoints/01-b/00000020",
    ]
    assert _decide(state, "last:4:1-sqrt").name == "01-b-20-average4-1-sqrt"
    again = Releasing.model_validate(json.loads(decided.model_dump_json()))
    assert again == decided
    state.apply(decided)
    assert not list(check_averages(FoldedLedger(events=[decided], state=state)))


def test_a_release_that_is_no_average_is_written_as_before_there_were_any() -> None:
    decided = _decide(_state(), "last:2").model_copy(update={"average": None})
    assert "average" not in decided.model_dump(mode="json")


def test_more_than_the_store_holds_are_refused() -> None:
    with refused("too-few-checkpoints", "--average") as caught:
        _decide(_state(), "last:5")
    assert "holds 4 checkpoints of the trunk until there (00-a@5, 00-a@10" in caught.value.problem
    assert "training.keep_last" in caught.value.remedy


@pytest.mark.parametrize(
    "text", ["5", "last", "last:1", "last:0", "last:3:ema", "first:3", "last:"]
)
def test_what_is_no_average_is_refused(text: str) -> None:
    with refused("average-invalid", "--average") as caught:
        read_average(text)
    assert ("no weighting 'ema'" in str(caught.value)) == ("ema" in text)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"step": 11}, "is an average of 00-a step 11"),
        ({"step": 9}, "step 9 of 01-b-20-average3 is checkpoints/00-a/00000010"),
        ({"weight": 2.0}, "weights of 01-b-20-average3"),
        ({"stage": "02-c"}, "is an average of 02-c step 10"),
    ],
)
def test_an_average_that_was_altered_is_found(change: dict[str, Any], problem: str) -> None:
    state = _state()
    told = _decide(state, "last:3").model_dump(mode="json")
    told["average"]["of"][0] |= change
    altered = Releasing.model_validate(told)
    state.apply(altered)
    findings = list(check_averages(FoldedLedger(events=[altered], state=state)))
    assert any(problem in finding.problem for finding in findings)
