"""Deciding a stage: steps, schedule, mix, start; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perennial.config import RunSpec
from perennial.config.training import ModelSpec
from perennial.errors import InputError
from perennial.mixture import ReplayRule, stage_mix
from perennial.runs import events, metrics, summary
from perennial.runs.stage_planner import (
    check_first_stage,
    decide_release,
    decide_stage,
    explain_rewarming,
    stage_steps,
    warn_of_start,
)
from perennial.runs.state import RunState, Stage
from perennial.runs.trunk.containment import trained_corpora
from perennial.schedules import (
    ConstantSchedule,
    CosineSchedule,
    InfiniteSchedule,
    from_dict,
    release_anneal,
)
from tests.support.tiny_run import tiny_run

AT = "2026-01-01T00:00:00+00:00"


WSD = {"kind": "wsd", "eta_max": 3e-3, "eta_min": 3e-4, "decay": "2 steps"}
COSINE = {"kind": "cosine", "eta_max": 3e-3, "eta_min": 3e-4, "warmup": "10%"}


def _spec(changes: dict[str, Any] | None = None) -> RunSpec:
    document = tiny_run(Path("/nowhere"))
    for section, value in (changes or {}).items():
        document[section] = value if "kind" in value else document[section] | value
    return RunSpec.model_validate(document)


def _state(*corpora: str, rows: int = 800) -> RunState:
    state = RunState()
    for name in corpora:
        state.apply(events.Landed(at=AT, corpus=name, size_bytes=1))
        state.apply(events.Ingesting(at=AT, corpus=name))
        ready = events.Ready(at=AT, corpus=name, sequences=rows, tokens=rows * 128, digest="d")
        state.apply(ready)
    return state


def _train(spec: RunSpec, state: RunState, corpus: str) -> events.Started:
    started = decide_stage(spec, state, corpus, AT, "", reschedule=False)
    state.apply(started)
    step = state.stages[-1].last_step
    state.apply(events.Trained(at=AT, corpus=corpus, checkpoint=f"end/{corpus}", step=step))
    state.apply(events.Evaluating(at=AT, corpus=corpus))
    state.apply(events.Evaluated(at=AT, corpus=corpus, losses={}))
    state.apply(events.Passed(at=AT, corpus=corpus, verdicts=[]))
    return started


def test_the_first_stage_sets_the_trunks_schedule_and_later_ones_keep_it() -> None:
    spec, state = _spec(), _state("a", "b")
    first, second = _train(spec, state, "a"), _train(spec, state, "b")
    schedule = from_dict(first.schedule)
    assert isinstance(schedule, InfiniteSchedule)
    assert (schedule.warmup_steps, schedule.cooldown_steps) == (1, 7)  # 10% and 60% of 12 steps
    assert second.schedule == first.schedule
    assert (first.first_step, first.start) == (0, None)
    assert (second.first_step, second.start) == (12, "end/a")
    assert [first.stage, second.stage] == ["00-a", "01-b"]
    state.validate()


def test_i1_another_schedule_than_the_trunks_is_refused_with_the_difference() -> None:
    state = _state("a", "b")
    _train(_spec(), state, "a")
    changed = _spec({"schedule": {"eta_const": 1e-3}})
    with pytest.raises(InputError, match=r"eta_const: 0.00165 -> 0.001.*--reschedule"):
        decide_stage(changed, state, "b", AT, "", reschedule=False)
    insisted = decide_stage(changed, state, "b", AT, "", reschedule=True)
    assert insisted.schedule["eta_const"] == 1e-3


def test_a_cosine_trunk_warms_up_again_in_every_stage() -> None:
    spec, state = (
        _spec({"schedule": COSINE}),
        _state("a", "b"),
    )
    _train(spec, state, "a")
    schedule = from_dict(_train(spec, state, "b").schedule)
    assert isinstance(schedule, CosineSchedule)
    assert (schedule.first_step, schedule.steps) == (12, 12)
    assert release_anneal(spec.release, 3e-4, schedule, 24, spec.tokens_per_step) is None


def test_a_stage_of_a_cosine_trunk_may_have_a_peak_of_its_own() -> None:
    own = {"corpora": {"b": {"schedule": {"eta_max": 1e-3}}}}
    spec, state = _spec({"schedule": COSINE, "stages": own}), _state("a", "b", "c")
    rates = [_train(spec, state, corpus).schedule["eta_max"] for corpus in "abc"]
    assert rates == [3e-3, 1e-3, 3e-3]


def test_a_release_off_a_stage_with_rates_of_its_own_anneals_to_the_stage_s_lowest() -> None:
    own = {"corpora": {"b": {"schedule": {"eta_max": 1e-4, "eta_min": 1e-5}}}}
    spec, state = _spec({"schedule": WSD, "stages": own}), _state("a", "b")
    for corpus, step, ends in (("a", 4, (3e-3, 3e-4)), ("b", 16, (1e-4, 1e-5))):
        _train(spec, state, corpus)
        decided = decide_release(spec, state, state.stages[-1], step, None, AT)
        assert decided.schedule is not None
        assert (decided.schedule["eta_start"], decided.schedule["eta_min"]) == ends


def test_a_stage_told_again_has_the_parameters_that_it_began_with() -> None:
    spec = _spec({"stages": {"optimizer": "keep"}})
    state = _state("english", "french")
    _train(spec, state, "english")
    decided = _train(spec, state, "french")
    before = metrics.parameters(spec, Stage.decided(decided, after=1))
    assert before["optimizer"] == "keep"
    assert before["steps"] == decided.mix.steps
    assert metrics.parameters(spec, state.stages[1]) == before


def test_the_replay_share_and_the_budget_may_differ_by_corpus() -> None:
    overrides = {"corpora": {"b": {"budget": "20 steps", "replay": 0.5}}}
    spec, state = _spec({"stages": overrides}), _state("a", "b")
    _train(spec, state, "a")
    mix = _train(spec, state, "b").mix
    assert (mix.steps, [s.sequences for s in mix.sources]) == (20, [80, 80])


def test_a_percentage_budget_is_of_the_corpus() -> None:
    spec = _spec({"stages": {"budget": "50%"}})
    assert stage_steps(spec, "a", rows=807) == 50


def test_a_corpus_smaller_than_one_global_batch_is_refused() -> None:
    with pytest.raises(InputError, match="7 sequences of 128 tokens are less than one"):
        stage_steps(_spec(), "a", rows=7)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"schedule": {"warmup": "8 steps"}}, "do not fit into a first stage of 12 steps"),
        ({"stages": {"budget": "1 tokens"}}, "less than one step"),
    ],
)
def test_what_cannot_fit_is_known_before_anything_is_read(
    changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        check_first_stage(_spec(changes), "a")


def test_an_anneal_of_one_step_is_refused() -> None:
    spec, state = _spec({"release": {"anneal": "1 steps"}}), _state("a")
    trunk = from_dict(_train(spec, state, "a").schedule)
    with pytest.raises(InputError, match="at least 2 steps"):
        release_anneal(spec.release, 3e-4, trunk, 12, spec.tokens_per_step)


def test_a_proxy_that_is_ready_is_replayed_by_every_stage_and_counted() -> None:
    proxies = {"corpora": {"web": {"role": "replay"}, "held": {"role": "replay"}}}
    spec, state = _spec({"stages": proxies}), _state("web", "held", "a", "b")
    state.apply(events.Held(at=AT, corpus="held"))
    first = _train(spec, state, "a")
    assert first.mix.replay.proxies == {"web": 800}
    assert {s.corpus: s.sequences for s in first.mix.sources} == {"a": 72, "web": 24}
    assert trained_corpora(state, state.stages[0]) == ("a", "web")
    _train(spec, state, "b")
    assert sum(state.seen(state.stages[1], 24).values()) == 2 * 12 * 8
    assert summary.matrix(state).proxies == {"00-a": ("web",), "01-b": ("web",)}
    state.validate()


def test_a_first_stage_from_a_stored_model_that_replays_nothing_is_warned_of() -> None:
    state, spec = _state("a"), _spec()
    mix = decide_stage(spec, state, "a", AT, "", reschedule=False).mix
    schedule = ConstantSchedule(1e-3, warmup_steps=10)
    assert warn_of_start(spec, mix, schedule) == [], "random weights have nothing to lose"
    stored = spec.model_copy(update={"model": ModelSpec(path="/models/small")})
    (told,) = warn_of_start(stored, mix, schedule)
    assert "replays nothing of what that was trained on" in told
    replayed = stage_mix([], {"a": 80}, 10, 8, ReplayRule(share=0.25, proxies={"web": 30}))
    assert warn_of_start(stored, replayed, schedule) == []


def test_a_warmup_of_a_stored_model_that_is_hardly_one_is_told_before_compute() -> None:
    """1% of 40 steps is none: the first step is the highest, with an optimizer that is new."""
    stored = _spec({"schedule": {"warmup": "1%"}, "stages": {"budget": "40 steps"}})
    stored = stored.model_copy(update={"model": ModelSpec(path="/models/small")})
    started = decide_stage(stored, _state("a"), "a", AT, "", reschedule=False)
    schedule = from_dict(started.schedule)
    told = warn_of_start(stored, started.mix, schedule)[-1]
    assert "at its peak after 0 of 40 steps" in told
    assert "schedule.warmup: 10 steps" in told
    (reason,) = explain_rewarming(stored, schedule)
    assert "rises from 0 to 0.003 over 0 steps" in reason
    assert "schedule.warmup_start" in reason
    later = {"schedule": {"warmup": "10 steps", "warmup_start": 3e-4, "cooldown": "0 steps"}}
    spec = _spec(later | {"schedule": later["schedule"] | {"eta_const": 3e-3}})
    spec = spec.model_copy(update={"model": stored.model})
    curve = from_dict(decide_stage(spec, _state("a"), "a", AT, "", reschedule=False).schedule)
    (reason,) = explain_rewarming(spec, curve)
    assert "rises from 0.0003 to 0.003 over 10 steps" in reason
    assert explain_rewarming(_spec(), curve) == []


def test_a_corpus_in_parts_takes_their_weights_and_the_length_of_the_parts_that_have_one() -> None:
    whole = _spec({"stages": {"budget": "100%"}, "replay": {"share": 0}})
    weights = {"corpora": {"a": {"weights": {"web": 1, "wiki": 3, "spam": 0}}}}
    weighted = _spec({"stages": {"budget": "100%", **weights}, "replay": {"share": 0}})
    state = _state("a")
    state.corpora["a"].parts = {"spam": 400, "web": 240, "wiki": 160}
    mix = decide_stage(whole, state, "a", AT, "", reschedule=False).mix
    assert [(s.part, s.sequences, s.first) for s in mix.sources] == [
        ("spam", 400, 0),
        ("web", 240, 400),
        ("wiki", 160, 640),
    ]
    assert "weights" not in mix.to_dict()
    mix = decide_stage(weighted, state, "a", AT, "", reschedule=False).mix
    assert (mix.steps, mix.weights) == (50, {"a": {"spam": 0.0, "web": 1.0, "wiki": 3.0}})
    assert [(s.part, s.sequences, s.extent) for s in mix.sources] == [
        ("web", 100, 240),
        ("wiki", 300, 160),
    ]


def test_weights_of_a_corpus_without_parts_are_refused_before_it_trains() -> None:
    spec = _spec({"stages": {"corpora": {"a": {"weights": {"web": 1}}}}})
    with pytest.raises(InputError, match="it has no parts; set corpora"):
        decide_stage(spec, _state("a"), "a", AT, "", reschedule=False)
