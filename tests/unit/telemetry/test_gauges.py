"""What the controller's gauges say of a state and an inbox."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from perennial.runs.actions import Order
from perennial.runs.state import Corpus, RunState
from perennial.runs.transitions import CorpusState
from perennial.telemetry.gauges import Gauges, read_gauges
from tests.support.event_factory import WALK, walk

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
LANDED_AT = {
    name: NOW - timedelta(hours=hours)
    for name, hours in (("english", 9), ("french", 3), ("german", 2), ("spanish", 1))
}


def state(**states: CorpusState) -> RunState:
    found = RunState()
    for name, each in states.items():
        found.corpora[name] = Corpus(name, each)
    return found


@pytest.mark.parametrize(
    ("corpora", "told"),
    [
        ({}, Gauges("waiting", ("english", "french", "german", "spanish"), 9 * 3600)),
        (
            {"english": "passed", "french": "training", "german": "ready"},
            Gauges("training french", ("german", "spanish"), 3 * 3600),
        ),
        (
            {"english": "passed", "french": "evaluating", "german": "landed"},
            Gauges("evaluating french", ("german", "spanish"), 2 * 3600),
        ),
        (
            {"english": "passed", "french": "gated", "german": "held", "spanish": "refused"},
            Gauges("gated french", (), 0),
        ),
        (dict.fromkeys(LANDED_AT, "passed"), Gauges("waiting", (), 0)),
    ],
)
def test_the_gauges_tell_what_is_done_what_waits_and_how_old_it_is(
    corpora: dict[str, CorpusState], told: Gauges
) -> None:
    assert read_gauges(state(**corpora), LANDED_AT, NOW) == told


def test_a_stage_of_several_corpora_is_told_with_all_of_them() -> None:
    run = RunState()
    for name in ("english", "french"):
        walk(run, name, *WALK[:3])
    walk(run, "english", "started", joined=["french"])
    told = read_gauges(run, LANDED_AT, NOW)
    assert (told.doing, told.queue) == ("training english and french", ("german", "spanish"))


def test_a_stage_that_failed_while_training_still_ages() -> None:
    failed = state(english="passed", french="failed")
    failed.corpora["french"].back = "training"
    seen = {name: LANDED_AT[name] for name in ("english", "french")}
    assert read_gauges(failed, seen, NOW) == Gauges("failed french", (), 3 * 3600)


def test_what_does_not_become_a_stage_does_not_wait_for_one() -> None:
    run = state(english="ready", french="training")
    told = read_gauges(run, LANDED_AT, NOW, Order(only=["french", "spanish"]))
    assert told == Gauges("training french", ("spanish",), 3 * 3600)
