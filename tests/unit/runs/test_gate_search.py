"""A search after a broken gate: its trials, its bounds, the one that becomes the stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.config import RunSpec
from perennial.config.search import Point
from perennial.controller.reuse_trial import beginnings
from perennial.evaluation.gates import Verdict
from perennial.runs import events
from perennial.runs.actions import Action, Outside, next_action
from perennial.runs.event_codec import decode, encode
from perennial.runs.stage_planner import decide_stage
from perennial.runs.state import RunState
from perennial.runs.storage.space import list_free
from perennial.runs.unattended.gate_response import GateResponse, respond_to_gate
from perennial.runs.unattended.gate_search import branch_trial
from tests.support.event_factory import AT, WALK, walk
from tests.support.tiny_run import tiny_run

FORGOT = Verdict("max_forgetting", "a", 0.4, 0.01, 0.1, False)
COSINE = {"kind": "cosine", "eta_max": 2e-3, "eta_min": 1e-4, "warmup": "10%"}


def _spec(share: float = 0.1, schedule: dict[str, Any] | None = None, **gates: Any) -> RunSpec:
    document = tiny_run(Path("/nowhere"))
    document["replay"]["share"] = share
    document["gates"] = {"on_broken": "search", "max_forgetting": 0.1, **gates}
    document["schedule"] = schedule or document["schedule"]
    return RunSpec.model_validate(document)


class Trunk:
    """A run whose second stage forgets too much below a share of replay; nothing is trained.

    needed: that share; half of it at half the peak rate.
    """

    def __init__(self, spec: RunSpec, needed: float) -> None:
        self.spec, self.needed, self.state = spec, needed, RunState()
        walk(self.state, "a")
        walk(self.state, "b", *WALK[:3])
        self.train()

    def write(self, event: events.Event) -> None:
        """Apply an event as the ledger holds it."""
        self.state.apply(decode(encode(event)).event)

    def train(self) -> None:
        """Train the stage of `b`, and judge it."""
        self.write(decide_stage(self.spec, self.state, "b", AT, "", reschedule=True))
        walk(self.state, "b", *WALK[4:7])
        stage = self.state.stages[-1]
        verdicts = self.verdicts(stage.mix.replay.share, stage.schedule.get("eta_max"))
        kind = events.Passed if all(each.holds for each in verdicts) else events.Gated
        self.write(kind(at=AT, corpus="b", verdicts=verdicts))

    def verdicts(self, share: float, rate: Any) -> list[Verdict]:
        """The verdicts of a share and a peak."""
        needed = self.needed * rate / self.spec.schedule.model_dump()["eta_max"]
        excess = max(0.0, needed - share)
        return [Verdict("max_forgetting", "a", 0.1 + excess, 0.01, 0.1, not excess)]

    def response(self) -> GateResponse | None:
        """What follows the gate."""
        return respond_to_gate(self.spec, self.state)

    def begin(self) -> events.Branched:
        """Begin the next trial."""
        response = self.response()
        assert response is not None
        if response.search not in self.state.searches.claims:
            start = self.state.stages[-1].start or ""
            begun = events.Searching(
                at=AT, name=response.search, corpus="b", source=start, spec={}, claim=1
            )
            self.write(begun)
        branched = branch_trial(self.spec, self.state, AT, reschedule=True)
        self.write(branched)
        return branched

    def measure(self, branched: events.Branched, *verdicts: Verdict) -> None:
        """Measure a trial that is trained; its loss is the share of replay."""
        point = branched.point
        assert isinstance(point, Point)
        known = list(verdicts) or self.verdicts(point.replay, branched.schedule.get("eta_max"))
        tried = events.Tried(
            at=AT,
            trial=branched.trial,
            step=branched.step + branched.mix.steps,
            checkpoint=f"branches/{branched.trial}/end",
            trained_steps=branched.mix.steps,
            values={"adaptation": 3 + point.replay},
            losses={},
            verdicts=known,
        )
        self.write(tried)

    def take(self) -> None:
        """Take the stage off the trunk for the trial that is taken."""
        response = self.response()
        assert response is not None
        retried = events.Retried(
            at=AT,
            corpus="b",
            by_person=False,
            replay=response.replay,
            reason=response.reason,
            search=response.search,
            rate=response.rate,
        )
        self.write(retried)

    def run(self) -> list[Any]:
        """Follow the gate until a trial is taken, or a user must decide; what was tried."""
        tried = []
        while (response := self.response()) is not None and response.answer == "search":
            branched = self.begin()
            assert isinstance(branched.point, Point)
            tried.append((branched.point.replay, branched.schedule.get("eta_max")))
            self.measure(branched)
        return tried


def test_the_best_trial_that_holds_becomes_the_stage_with_the_same_plan() -> None:
    trunk = Trunk(_spec(), needed=0.25)
    first = trunk.state.stages[-1]
    assert trunk.response() == GateResponse("b", 0.2, "trial 1 of at most 4", "gate/01-b")
    assert next_action(trunk.state, Outside(answer="search")) == Action("search", "b")
    assert [share for share, _ in trunk.run()] == [0.2, 0.4, 0.3, 0.25]
    response = trunk.response()
    assert response is not None
    assert (response.answer, response.replay) == ("take-trial", 0.25)
    assert response.describe() == (
        "again with 25% replay: the best of 4 trials that holds the gates, 3.250 nats per token on "
        "the new text"
    )
    assert next_action(trunk.state, Outside(answer="take-trial")) == Action("take-trial", "b")
    trunk.take()
    assert trunk.state.abandoned == [first]
    trunk.train()
    assert trunk.state.corpora["b"].state == "passed"
    (trial,) = beginnings(trunk.state, trunk.state.stages[-1])
    assert trial.branched.point == Point(1.65e-3, 0.25, "seen")
    trunk.state.validate()


def test_a_trial_that_breaks_another_bound_as_the_stage_does_not_end_the_search() -> None:
    trunk = Trunk(_spec(), needed=0.15)
    assert [share for share, _ in trunk.run()] == [0.2, 0.15]
    trunk.take()
    trunk.needed = 0.2
    trunk.train()
    assert [share for share, _ in trunk.run()] == []
    response = trunk.response()
    assert response is not None
    assert (response.answer, response.replay, response.search) == ("take-trial", 0.2, "gate/01-b")
    trunk.take()
    trunk.train()
    assert trunk.state.corpora["b"].state == "passed"
    assert [stage.name for stage in trunk.state.abandoned] == ["01-b", "02-b"]


def test_where_nothing_holds_the_run_stops_and_says_what_was_tried() -> None:
    trunk = Trunk(_spec(share=0.2), needed=0.9)
    assert [share for share, _ in trunk.run()] == [0.4, 0.5]
    response = trunk.response()
    assert response is not None
    assert response.answer is None
    assert response.describe() == (
        "no other stage: none of 2 trials holds (40% replay: max_forgetting of a is +0.600, bound "
        "0.1; 50% replay: max_forgetting of a is +0.500, bound 0.1), and no other one promises more"
    )
    assert next_action(trunk.state, Outside()) == Action("wait", "b")


def test_a_schedule_with_a_peak_in_every_stage_is_tried_with_a_lower_one() -> None:
    trunk = Trunk(_spec(share=0.2, schedule=COSINE), needed=0.9)
    assert trunk.run() == [(0.4, 2e-3), (0.5, 2e-3), (0.5, 1e-3)]
    trunk.take()
    assert trunk.state.corpora["b"].rate == 1e-3
    trunk.train()
    assert trunk.state.corpora["b"].state == "passed"
    assert len(beginnings(trunk.state, trunk.state.stages[-1])) == 1
    fixed = _spec(0.2, COSINE).model_dump(mode="json")
    fixed["stages"]["corpora"] = {"b": {"schedule": {"eta_max": 2e-3}}}
    trunk = Trunk(RunSpec.model_validate(fixed), needed=0.9)
    assert trunk.run() == [(0.4, 2e-3), (0.5, 2e-3)], "the run file's own peak of a stage stays"


@pytest.mark.parametrize(
    ("bounds", "limit", "trials", "reason"),
    [
        ({}, None, 4, "gates.max_trials allows 4"),
        ({"max_trials": 1}, None, 1, "gates.max_trials allows 1"),
        (
            {"search_tokens": "250%"}, None, 2,
            "another trial would make 36,864 tokens, more than gates.search_tokens: 250%",
        ),
        (
            {}, "13k tokens", 1,
            "another trial would make 24,576 tokens, more than limits.search_tokens: 13k tokens",
        ),
        (
            {"search_tokens": "11 steps"}, None, 0,
            "another trial would make 12,288 tokens, more than gates.search_tokens: 11 steps",
        ),
    ],
)  # fmt: skip
def test_trials_are_bounded_in_number_and_in_tokens(
    bounds: dict[str, Any], limit: str | None, trials: int, reason: str
) -> None:
    document = _spec(0.01, COSINE, **bounds).model_dump(mode="json")
    document["limits"]["search_tokens"] = limit
    trunk = Trunk(RunSpec.model_validate(document), needed=50)
    assert len(trunk.run()) == trials
    response = trunk.response()
    assert response is not None
    assert response.answer is None
    assert response.reason.endswith(reason)


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        (
            Verdict("tasks.max_drop", "hellaswag", 0.1, 0.01, 0.02, False),
            "tasks.max_drop of hellaswag is nothing that a search over held-out losses would mend",
        ),
        (
            Verdict("finite", "a", None, None, 0.0, False, "not a number"),
            "finite of a is nothing that a search over held-out losses would mend",
        ),
        (
            Verdict("max_forgetting", "z", 0.4, None, 0.1, False),
            "z is forgotten and not replayed",
        ),
    ],
)
def test_what_no_trial_would_mend_waits_for_a_user(verdict: Verdict, reason: str) -> None:
    trunk = Trunk(_spec(), needed=0.9)
    trunk.state.verdicts["01-b"] = [verdict]
    assert trunk.response() == GateResponse("b", None, reason, "gate/01-b")


def test_the_first_stage_of_a_trunk_waits_for_a_user() -> None:
    spec, state = _spec(), RunState()
    walk(state, "a", *WALK[:3])
    state.apply(decide_stage(spec, state, "a", AT, "", reschedule=False))
    walk(state, "a", *WALK[4:7], "gated")
    response = respond_to_gate(spec, state)
    assert response is not None
    assert response.reason.startswith("trials branch off a checkpoint")


def test_a_stage_that_learned_too_little_is_tried_with_less_replay() -> None:
    trunk = Trunk(_spec(share=0.4), needed=0.9)
    slow = Verdict("min_gain", "b", 0.1, 0.01, 0.2, False)
    trunk.state.verdicts["01-b"] = [slow]
    branched = trunk.begin()
    assert isinstance(branched.point, Point)
    assert branched.point.replay == 0.2
    trunk.measure(branched, slow)
    response = trunk.response()
    assert response is not None
    assert response.replay == 0.1


def test_a_failed_trial_is_tried_again_and_a_users_retry_begins_a_search_of_its_own() -> None:
    trunk = Trunk(_spec(), needed=0.9)
    state, branched = trunk.state, trunk.begin()
    walk(state, "b", "failed")
    assert (state.corpora["b"].state, state.stages[-1].name) == ("failed", "01-b")
    walk(state, "b", "retried")
    assert state.corpora["b"].state == "gated"
    response = trunk.response()
    assert response == GateResponse("b", 0.2, "trial 1 of at most 4", "gate/01-b")
    trunk.measure(branched)
    walk(state, "b", "retried")
    trunk.train()
    again = trunk.response()
    assert again == GateResponse("b", 0.2, "trial 1 of at most 4", "gate/02-b")
    state.validate()


def test_trials_can_be_let_go_once_the_stage_has_passed() -> None:
    trunk = Trunk(_spec(), needed=0.15)
    trunk.run()
    keys = [f"branches/{name}/00000024/manifest.json" for name in trunk.state.searches.trials]
    assert list_free(trunk.state, "trials", keys, ()) == []
    trunk.take()
    assert list_free(trunk.state, "trials", keys, ()) == []
    trunk.train()
    freed = list_free(trunk.state, "trials", keys, ())
    assert freed == sorted(f"branches/{name}" for name in trunk.state.searches.trials)


@settings(max_examples=60, deadline=None)
@given(
    share=st.integers(0, 100),
    needed=st.integers(0, 150),
    most=st.integers(1, 6),
    tokens=st.integers(0, 700),
    peaks=st.booleans(),
    kills=st.lists(st.booleans(), min_size=20, max_size=20),
)
def test_bounds_hold_and_a_search_that_is_killed_is_the_same(
    share: int, needed: int, most: int, tokens: int, peaks: bool, kills: list[bool]
) -> None:
    """A process that is killed knows nothing; another one reads the ledger and goes on."""
    spec = _spec(
        share / 100, COSINE if peaks else None, max_trials=most, search_tokens=f"{tokens}%"
    )
    whole, killed = Trunk(spec, needed / 100), Trunk(spec, needed / 100)
    done = [each for each in whole.run() if each]
    for dies in kills:
        response = killed.response()
        if response is None or response.answer != "search":
            break
        searches = killed.state.searches
        begun = [t.branched for t in searches.of(response.search).values() if not t.tried]
        branched = begun[0] if begun else killed.begin()
        assert isinstance(branched.point, Point)
        assert branched.point.replay == response.replay
        if dies:
            continue  # after its first checkpoint, or before
        killed.measure(branched)
    assert killed.response() == whole.response() or any(kills)
    trials = list(killed.state.searches.trials.values())
    assert len(trials) <= most
    steps = sum(trial.branched.mix.steps for trial in trials)
    assert steps <= spec.gates.search_tokens.steps(12, spec.tokens_per_step)
    points = [(t.branched.mix.replay.share, t.branched.schedule.get("eta_max")) for t in trials]
    assert points == done[: len(points)]
    names = list(whole.state.searches.trials)
    assert list(killed.state.searches.trials) == names[: len(points)]
    killed.state.validate()
