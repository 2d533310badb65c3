"""Tuning files, trials as pure decisions, results, and what a stage takes over of a trial."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from perennial.config import RunSpec, load_run, parse, stage_settings
from perennial.config.search import Choices, Point, Span, TuningSpec
from perennial.controller.reuse_trial import beginnings
from perennial.corpora.manifest import Shard
from perennial.errors import InputError, InvalidTransition
from perennial.runs import event_codec, events
from perennial.runs.stage_planner import decide_stage
from perennial.runs.state import RunState, Stage
from perennial.schedules import (
    SCHEDULES,
    CosineSchedule,
    InfiniteConfig,
    InfiniteSchedule,
    Schedule,
    ScheduleConfig,
    build_curve,
    to_dict,
)
from perennial.search.begin import PlannedSearch, _check_warmup, check_constant
from perennial.search.results import SearchResult
from perennial.search.service import _checked_space
from perennial.search.space import Space, space_of
from perennial.search.summarize import SearchSetting, TrialOutcome, summarize
from perennial.search.trials import Bench, objective_values
from perennial.search.tune_runner import _trial_logger, advised, optuna_searcher
from tests.support.event_factory import AT, event_of
from tests.support.small_manifest import small_manifest
from tests.support.tiny_run import tiny_run

SEARCH: dict[str, Any] = {"name": "s", "run": "run.yaml", "budget": "20%", "replay": [0.1, 0.5]}
HERE = Point(1.65e-3, 0.25, "seen")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"replay": None}, "there is nothing to search; give values for"),
        ({"replay": []}, "replay: there is nothing to try; give numbers from 0 to 1"),
        ({"replay": [1.5]}, "replay: 1.5 is refused; give numbers from 0 to 1"),
        ({"replay": [0.1, 0.1]}, "replay: a value is there twice"),
        ({"eta_const": [0]}, "eta_const: 0 is refused; give numbers above 0"),
        ({"eta_const": {"low": 1e-3, "high": 1e-4}}, "the range 0.001 to 0.0001 is empty"),
        ({"eta_const": {"from": 1e-3}}, "a range has low and high, not from"),
        ({"eta_const": "fast"}, "'fast' is neither a list nor a range"),
        ({"eta_const": [1e-3], "eta_max": [1e-3]}, "both given"),
        ({"replay": {"low": 0, "high": 0.5}}, "a grid has no ranges, and replay is one"),
        ({"trials": 3}, "trials is not used with searcher grid"),
        ({"searcher": "random"}, "searcher random needs trials"),
        ({"searcher": "genetic"}, "searcher: 'genetic' is refused"),
        ({"objectives": ["adaptation", "speed"]}, "there is no objective 'speed'"),
        ({"objectives": ["adaptation"]}, "objectives are two that trade against each other"),
        ({"weighting": ["fixed"]}, "weighting.0: 'fixed' is refused"),
        ({"anneal": ["some"]}, "anneal.0: 'some' is not an amount with its unit"),
        ({"halving": {"first": "5%", "factor": 1}}, "halving.factor: 1 is refused"),
        (
            {"searcher": "optuna", "trials": 3, "halving": {"first": "5%"}},
            "halving is not used with searcher optuna",
        ),
    ],
)
def test_a_wrong_tuning_file_is_refused_with_what_would_be_right(
    changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError) as refused:
        parse(SEARCH | changes, TuningSpec, "tuning.yaml")
    assert told in str(refused.value)
    assert refused.value.remedy


def test_a_space_holds_what_is_searched_and_the_run_file_gives_the_rest() -> None:
    spec = parse(SEARCH | {"eta_const": ["1e-3", 2e-3]}, TuningSpec, "")
    assert space_of(spec, HERE).grid() == [
        Point(eta, share, "seen") for eta in (1e-3, 2e-3) for share in (0.1, 0.5)
    ]
    only = parse(SEARCH | {"replay": None, "weighting": ["seen", "recent"]}, TuningSpec, "")
    assert space_of(only, HERE).grid() == [HERE, replace(HERE, weighting="recent")]


def test_a_tuning_file_says_the_same_after_it_went_through_json() -> None:
    ranges = {"searcher": "random", "trials": 4, "eta_const": {"low": 1e-4, "high": 1e-3}}
    spec = parse(SEARCH | ranges, TuningSpec, "")
    assert spec.rate == Span(1e-4, 1e-3)
    assert spec.replay == Choices((0.1, 0.5))
    assert parse(spec.model_dump(mode="json"), TuningSpec, "") == spec


def _bench(folder: Path, **changes: Any) -> Bench:
    """A trunk that has trained `a` and searches the stage of `b`."""
    run = parse(tiny_run(folder) | changes, RunSpec, "run.yaml")
    state = RunState()
    for kind in ("landed", "ingesting", "ready"):
        state.apply(event_of(kind, state, "a"))
    begun = decide_stage(run, state, "a", AT, "", reschedule=False)
    state.apply(begun)
    end = f"checkpoints/{begun.stage}/00000012"
    state.apply(events.Trained(at=AT, corpus="a", checkpoint=end, step=12))
    for kind in ("evaluating", "evaluated", "passed"):
        state.apply(event_of(kind, state, "a"))
    for kind in ("landed", "ingesting", "ready"):
        state.apply(event_of(kind, state, "b"))
    rate = run.schedule.rate_field or ""
    names = ("adaptation", "forgetting")
    return Bench("t.yaml", "s", run, state, "b", ("a",), rate, 6, names, {}, {"a": 3.0})


def test_a_trial_is_the_beginning_of_the_stage_that_its_fragment_makes(tmp_path: Path) -> None:
    bench = _bench(tmp_path)
    point = Point(5e-4, 0.5, "uniform")
    trial = bench.branched(point)

    document = tmp_path / "run.yaml"
    document.write_text(yaml.safe_dump(tiny_run(tmp_path)))
    fragment = tmp_path / "fragment.yaml"
    fragment.write_text(yaml.safe_dump(point.fragment("b", "eta_const")))
    run = load_run(document, [str(fragment)])
    stage = decide_stage(run, bench.origin, "b", AT, "", reschedule=True)

    assert (trial.mix, trial.schedule) == (stage.mix, stage.schedule)
    assert (trial.source, trial.step) == (stage.start, stage.first_step)
    assert stage.schedule["eta_const"] == 5e-4
    assert stage.mix.replay.share == 0.5
    assert stage.mix.steps == 12  # the whole stage, of which the trial trains six


def test_trials_have_the_rates_of_the_stage_s_own_schedule(tmp_path: Path) -> None:
    wsd = {"kind": "wsd", "eta_max": 3e-3, "eta_min": 3e-4, "decay": "2 steps"}
    rates = {"eta_max": 1e-3, "eta_min": 1e-4, "warmup": "2 steps"}
    own = {"corpora": {"b": {"schedule": rates}}}
    bench = _bench(tmp_path, schedule=wsd, stages=own)
    point = Point(1e-3, 0.5, "seen", "4 steps")
    decided = bench.branched(point)
    shard = Shard(file="shard", size_bytes=1, sha256="", row_groups=(80,))
    manifests = {name: small_manifest(name, shards=(shard,)) for name in "ab"}
    bench = replace(bench, manifests=manifests)
    job = bench.anneal_job(bench.run_spec(point), point, decided, bench.first_step + 3)
    assert job is not None
    assert (job.eta(job.first_step), job.eta(job.last_step - 1)) == (1e-3, 1e-4)
    with pytest.raises(InputError, match="not more than the 2 of the warmup"):
        _check_warmup(bench, "t.yaml", point, (2,))


def test_a_stage_is_begun_by_trials_that_are_equal_to_it_in_everything(tmp_path: Path) -> None:
    bench = _bench(tmp_path)
    state = bench.origin
    claim = events.Searching(at=AT, name="s", corpus="b", source=bench.source, spec={}, claim=1)
    state.apply(claim)
    points = [Point(5e-4, 0.5, "seen"), Point(1e-3, 0.5, "seen"), Point(5e-4, 0.5, "seen", "", 1)]
    for point in points:
        state.apply(bench.branched(point))
    run = bench.run_spec(points[0])
    decided = decide_stage(run, state, "b", AT, "run", reschedule=True)
    stage = Stage.decided(decided, after=1)
    assert [vars(t.branched.point)["eta"] for t in beginnings(state, stage)] == [5e-4]
    assert not beginnings(state, replace(stage, optimizer="keep"))
    assert not beginnings(state, replace(stage, start="checkpoints/other/00000012"))


def test_a_trial_of_a_cosine_run_is_the_whole_stage_made_short(tmp_path: Path) -> None:
    cosine = {"kind": "cosine", "eta_max": 3e-3, "eta_min": 3e-4, "warmup": "10%"}
    bench = _bench(tmp_path, schedule=cosine)
    trial = bench.branched(Point(1e-3, 0.25, "seen"))
    wanted = build_curve(bench.run_spec(HERE).schedule, 12, 6, 1024)
    assert trial.mix.steps == 6
    assert trial.schedule == to_dict(wanted) | {"eta_max": 1e-3}


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({}, "24,576"),  # four points of six steps of 1,024 tokens
        ({"seeds": 2}, "49,152"),
        ({"halving": {"first": "2 steps", "factor": 2}}, "16,384"),  # of these, half go on
        ({"searcher": "random", "trials": 3}, "18,432"),
    ],
)
def test_a_search_that_may_train_more_than_its_limit_is_refused(
    tmp_path: Path, changes: dict[str, Any], tokens: str
) -> None:
    spec = parse(SEARCH | {"eta_const": [1e-3, 2e-3]} | changes, TuningSpec, "")
    rungs = (2, 6) if spec.halving else (6,)

    def check(most: str) -> None:
        bench = _bench(tmp_path, limits={"search_tokens": most})
        _checked_space(PlannedSearch(bench, HERE, rungs, 12), spec)

    check(f"{tokens.replace(',', '')} tokens")
    with pytest.raises(InputError, match=f"may train {tokens} tokens, more than 9 steps") as caught:
        check("9 steps")
    assert caught.value.code == "search-too-large"


def test_another_seed_trains_other_documents_and_never_becomes_a_stage(tmp_path: Path) -> None:
    bench = _bench(tmp_path)
    plain, other = (bench.branched(replace(HERE, seed=seed)) for seed in (0, 1))
    assert plain.trial != other.trial
    sources = zip(plain.mix.sources, other.mix.sources, strict=True)
    for mine, shifted in sources:
        assert mine.sequences == shifted.sequences
        assert shifted.start == (mine.start + mine.sequences) % mine.extent


def _config(kind: str) -> ScheduleConfig:
    keys = {"kind": kind, "eta_max": 3e-3, "eta_min": 3e-4}
    return SCHEDULES[kind].model_validate(keys)


COSINE = CosineSchedule(3e-3, 3e-4, 2, 12)
INFINITE = InfiniteSchedule(3e-3, 1e-3, 3e-4, 2, 6, "cosine")


@pytest.mark.parametrize(
    ("kind", "trunk", "step", "phase"),
    [
        ("infinite", INFINITE, 2, "cooldown"),
        ("cosine", INFINITE, 2, "cooldown"),
        ("infinite", COSINE, 12, "anneal"),
        ("cosine", COSINE, 6, "anneal"),
        ("cosine", COSINE, 1, "warmup"),
    ],
)
def test_a_checkpoint_that_is_not_of_the_constant_phase_is_refused(
    kind: str, trunk: Schedule, step: int, phase: str
) -> None:
    with pytest.raises(InputError, match=f"of the {phase} phase") as refused:
        check_constant("t.yaml", _config(kind), trunk, f"00-a@{step}", step, whole=step == 12)
    assert (refused.value.code, refused.value.field) == ("phase-not-constant", "after")


@pytest.mark.parametrize(
    ("kind", "trunk", "step"),
    [("infinite", INFINITE, 8), ("infinite", INFINITE, 12), ("cosine", INFINITE, 12),
     ("cosine", COSINE, 12)],
)  # fmt: skip
def test_trials_branch_off_a_constant_phase_or_a_whole_decay(
    kind: str, trunk: Schedule, step: int
) -> None:
    check_constant("t.yaml", _config(kind), trunk, f"00-a@{step}", step, whole=step == 12)


def test_a_point_that_the_run_cannot_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is outside eta_min"):
        _bench(tmp_path).run_spec(Point(1e-2, 0.25, "seen"))


def test_objectives_come_from_losses_before_and_after() -> None:
    nats, before = {"b": 3.0, "a": 5.0, "c": 4.5}, {"a": 4.0, "c": 4.5}
    told = objective_values(
        ("adaptation", "forgetting", "forgetting/a"), nats, before, "b", ("a", "c")
    )
    assert told == {"adaptation": 3.0, "forgetting": 0.5, "forgetting/a": 1.0}


def test_the_ledger_takes_a_trial_once_and_its_measurements_in_order(tmp_path: Path) -> None:
    bench = _bench(tmp_path)
    state, trial = bench.origin, bench.branched(HERE)
    claim = events.Searching(at=AT, name="s", corpus="b", source=bench.source, spec={}, claim=1)

    def tried(step: int) -> events.Tried:
        return events.Tried(
            at=AT, trial=trial.trial, step=step, checkpoint="c", trained_steps=6, values={},
            losses={},
        )  # fmt: skip

    for early in (trial, tried(18)):
        with pytest.raises(InvalidTransition):
            state.check(early)
    for event in (claim, trial, tried(15), tried(18)):
        assert event_codec.decode(event_codec.encode(event)).event == event
        state.apply(event)
    for late in (claim, trial, tried(18), tried(16)):
        with pytest.raises(InvalidTransition):
            state.check(late)
    state.apply(claim.model_copy(update={"claim": 2}))
    state.validate()
    assert state.searches.of("s")[trial.trial].trained_steps == 12


def _setting(**changes: Any) -> SearchSetting:
    before = {"old": np.array([[300.0, 100.0]] * 8)}
    setting = SearchSetting(
        search="s", corpus="new", after="00-old", source="c", step=60, rate="eta_const",
        objectives=("adaptation", "forgetting"), before=before, steps=6, stage_steps=60,
        tokens_per_step=1000, seed=0,
    )  # fmt: skip
    return replace(setting, **changes)


def _outcome(eta: float, values: tuple[float, float], steps: int = 6) -> TrialOutcome:
    documents = {
        "new": np.array([[100 * values[0], 100.0]] * 8),
        "old": np.array([[300 + 100 * values[1], 100.0]] * 8),
    }
    point = Point(eta, 0.1, "seen")
    return TrialOutcome(point, {steps: values}, steps, "branches/t", ("t/6",), (documents,))


def test_a_result_names_front_knee_advice_and_cost() -> None:
    outcomes = [
        _outcome(1e-4, (3.0, 0.0)),
        _outcome(2e-4, (2.2, 0.1)),
        _outcome(3e-4, (2.0, 1.0)),
        _outcome(4e-4, (2.5, 0.9)),
        _outcome(5e-4, (2.0, 0.0), steps=2),  # better than all, but stopped
    ]
    space = space_of(parse(SEARCH, TuningSpec, ""), HERE)
    result = summarize(_setting(), space, outcomes)
    assert result.front == (2, 1, 0)
    assert result.knee == 1
    assert {advice.taste: advice.trial for advice in result.advice} == {
        "keep-old": 1, "balanced": 1, "learn-new": 1
    }  # fmt: skip
    fragment = result.advice[1].fragment
    assert fragment["schedule"] == {"eta_const": 2e-4}
    assert fragment["stages"] == {"corpora": {"new": {"replay": 0.1}}}
    assert [trial.finished for trial in result.trials] == [True] * 4 + [False]
    assert [trial.front_share for trial in result.trials] == [1.0, 1.0, 1.0, 0.0, 0.0]
    cost = result.cost
    assert (cost.trained_tokens, cost.stage_tokens) == (26_000, 60_000)
    assert cost.share == pytest.approx(26 / 60)
    assert cost.of_budget == pytest.approx(26 / 30)
    assert result.law is not None
    assert len(result.law.held_out) == 5


def test_a_result_is_read_as_it_is_written() -> None:
    space = space_of(parse(SEARCH, TuningSpec, ""), HERE)
    outcomes = [_outcome(i * 1e-4, (3.0 - i / 10, i / 10)) for i in range(1, 6)]
    for result in (
        summarize(_setting(), space, outcomes),
        summarize(_setting(), space, outcomes[:2]),  # without a law
    ):
        document = json.loads(json.dumps(result.to_dict()))
        assert SearchResult.from_dict(document) == result
        assert SearchResult.from_dict(document).to_dict() == document
        assert list(document) == [
            "search", "corpus", "after", "source", "step", "objectives", "trials", "front", "knee",
            "advice", "law", "cost",
        ]  # fmt: skip
        assert list(document["trials"][0]["point"]) == ["eta", "replay", "weighting", "anneal"]


def test_tastes_choose_the_ends_of_a_straight_front() -> None:
    ends = [(1e-4, (3.0, 0.0)), (2e-4, (2.5, 0.5)), (3e-4, (2.0, 1.0))]
    space = space_of(parse(SEARCH, TuningSpec, ""), HERE)
    result = summarize(_setting(), space, [_outcome(*end) for end in ends])
    tastes = {advice.taste: advice.trial for advice in result.advice}
    assert (tastes["keep-old"], tastes["learn-new"]) == (0, 2)
    assert result.law is None  # three trials are too few for one


def test_advice_is_run_as_it_is_written(tmp_path: Path) -> None:
    document = tmp_path / "run.yaml"
    document.write_text(yaml.safe_dump(tiny_run(tmp_path)))
    fragment = Point(5e-4, 0.5, "recent", "12%").fragment("b", "eta_const")
    part = tmp_path / "balanced.yaml"
    part.write_text(yaml.safe_dump(fragment))
    run = load_run(document, [str(part), "replay.max_epochs=2"])
    assert isinstance(run.schedule, InfiniteConfig)
    assert (run.schedule.eta_const, run.schedule.eta_max) == (5e-4, 3e-3)
    shares = [stage_settings(run, corpus).replay.share for corpus in "bc"]
    assert shares == [0.5, 0.25]
    assert (run.replay.weighting, run.replay.max_epochs) == ("recent", 2)
    assert str(run.release.anneal) == "12%"
    with pytest.raises(InputError) as refused:
        load_run(document, [str(tmp_path / "missing.yaml")])
    assert refused.value.code == "file-missing"


def test_optuna_proposes_what_was_begun_first_and_then_points_of_the_space() -> None:
    space = Space(Span(1e-4, 3e-3), Choices((0.0, 0.5)), ("seen", "recent"))
    begun = [Point(1e-3, 0.5, "seen"), Point(2e-3, 0.0, "recent")]
    searcher = optuna_searcher(space, begun, seed=1)
    told = []
    for number in range(12):
        point = Point(**searcher.suggest(str(number)))
        values = {"objective_1": point.eta, "objective_2": point.replay}
        searcher.on_trial_complete(str(number), values)
        told.append(point)
    assert told[:2] == begun
    assert len(set(told)) > 6
    for point in told:
        assert 1e-4 <= point.eta <= 3e-3
        assert point.replay in (0.0, 0.5)
        assert point.weighting in ("seen", "recent")


def test_a_search_asks_the_advisor_for_what_is_neither_finished_nor_under_way() -> None:
    space = Space(Choices((1e-3, 2e-3)), Choices((0.0, 0.5)), ("seen",))
    propose = advised(space, ("adaptation", "forgetting"), 1e5)
    finished = {space.grid()[0]: (3.0, 0.1)}
    busy = [space.grid()[1]]
    assert propose(finished, busy) in space.grid()[2:]
    assert propose(dict.fromkeys(space.grid(), (3.0, 0.1)), []) is None


def test_what_logs_the_trials_is_stored_by_tune_without_the_run_behind_it() -> None:
    from ray import cloudpickle

    lines, lock = list[str](), threading.Lock()

    def log(line: str) -> None:
        with lock:  # as a run's observers do
            lines.append(line)

    logger = _trial_logger(log, steps=6, count=2)
    cloudpickle.dumps(logger)
    result = {"objective_1": 3.0, "objective_2": 0.5}
    trial = SimpleNamespace(last_result=result, config={"point": asdict(HERE)})
    logger.on_trial_complete(1, [], trial)
    assert lines == [f"trial 1 of 2 at 6 steps: {HERE.name}: 3.000, 0.500"]
