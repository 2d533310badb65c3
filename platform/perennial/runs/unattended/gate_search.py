"""Decide how a search goes on after a broken gate, by the ledger alone. Pure.

Its trials are the stage again, as a whole and from where it began, at another share of replay or a
lower peak rate. They are judged by the bounds on held-out losses; the one that is taken becomes the
stage, which is judged by all bounds. Where it breaks one after all, the search goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING

from perennial.config.search import Point
from perennial.config.stage_settings import stage_settings
from perennial.mixture import known_corpora
from perennial.runs.events import Branched
from perennial.runs.search_state import GATE_SEARCH, Trial
from perennial.runs.stage_planner import decide_stage
from perennial.runs.unattended.share_search import TriedShare, best_share, next_share
from perennial.schedules import from_dict

if TYPE_CHECKING:
    from perennial.config import RunSpec
    from perennial.evaluation.gates import Verdict
    from perennial.runs.state import RunState, Stage

_FORGETTING = "max_forgetting"
_LEARNING = ("max_adaptation", "min_gain")


@dataclass(frozen=True)
class GateSearch:
    """The next action of a search: a trial to train, one that becomes the stage, or none.

    name: of the search.
    share, rate: of the trial to train, or to take; no rate where the schedule has none to vary.
        No share where a user must decide.
    taken: whether that trial was trained and becomes the stage.
    reason: why.
    """

    name: str
    share: float | None
    rate: float | None
    taken: bool
    reason: str


@dataclass(frozen=True)
class _Varied:
    """The settings of a stage that a search varies; `fixed` says why the share is none."""

    shares: bool
    rates: bool
    rate_field: str
    fixed: str = ""


def search_gate(spec: RunSpec, state: RunState, stage: Stage) -> GateSearch:
    """Return how the search for a stage that a gate stopped goes on.

    Args:
        spec: the run file.
        state: the run.
        stage: the last one of the trunk.
    """
    name = state.corpora[stage.corpora[0]].search or f"{GATE_SEARCH}{stage.name}"
    broken = [verdict for verdict in state.verdicts[stage.name] if not verdict.holds]
    varied = _varied(spec, state, stage, broken)
    obstacle = _obstacle_in(stage, broken, varied)
    if obstacle:
        return GateSearch(name, None, None, False, obstacle)
    trials = list(state.searches.of(name).values())
    begun = next((trial.branched.point for trial in trials if not trial.tried), None)
    if isinstance(begun, Point):
        rate = begun.eta if varied.rates else None
        return GateSearch(name, begun.replay, rate, False, _counted(spec, len(trials)))
    tried = _tried(state, stage, name, trials, varied)
    following = next_share(tried, shares=varied.shares, rates=varied.rates)
    bound = _bound_reached(spec, stage, trials)
    if following is not None and not bound:
        share, rate = following
        text = _counted(spec, len(trials) + 1)
        return GateSearch(name, share, rate if varied.rates else None, False, text)
    best = best_share(tried)
    if best is None:
        why = bound if following is not None else "no other one promises more"
        return GateSearch(name, None, None, False, _fruitless(tried, varied, len(trials), why))
    loss = "" if best.loss is None else f", {best.loss:.3f} nats per token on the new text"
    text = f"the best of {len(trials)} trials that holds the gates{loss}"
    return GateSearch(name, best.share, best.rate if varied.rates else None, True, text)


def branch_trial(spec: RunSpec, state: RunState, at: str, *, reschedule: bool) -> Branched:
    """Return the next trial of the search for the stage that a gate stopped.

    Args:
        spec: the run file.
        state: the run, whose search goes on with a trial that is not begun.
        at: UTC time of the event, ISO 8601.
        reschedule: accept another schedule than the trunk's.
    """
    stage = state.gated
    assert stage is not None
    search, corpus = search_gate(spec, state, stage), stage.corpora[0]
    assert search.share is not None
    corpora = dict(state.corpora)
    for name in stage.corpora:
        corpora[name] = replace(corpora[name], replay=search.share, rate=search.rate)
    origin = replace(state, corpora=corpora, stages=list(state.stages[: stage.after]))
    decided = decide_stage(spec, origin, corpus, at, "", reschedule, stage.corpora[1:])
    schedule = stage_settings(spec, corpus, None, search.rate).schedule
    eta = from_dict(decided.schedule).eta(decided.first_step)
    if schedule.rate_field is not None:
        eta = schedule.searched_rate
    point = Point(eta, search.share, spec.replay.weighting)
    assert decided.start is not None
    identity = [decided.start, decided.mix.to_dict(), decided.schedule, decided.optimizer]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return Branched(
        at=at,
        search=search.name,
        trial=f"{search.name.replace('/', '-')}-{point.name}-{digest[:6]}",
        corpus=corpus,
        point=point,
        stage=state.stages[stage.after - 1].name,
        step=decided.first_step,
        source=decided.start,
        mix=decided.mix,
        schedule=decided.schedule,
        optimizer=decided.optimizer,
        settings=decided.settings,
    )


def _varied(spec: RunSpec, state: RunState, stage: Stage, broken: Sequence[Verdict]) -> _Varied:
    corpus = stage.corpora[0]
    schedule = stage_settings(spec, corpus).schedule
    own = spec.stages.corpora.get(corpus)
    is_set = own is not None and own.schedule is not None and own.schedule.eta_max is not None
    field = schedule.rate_field or ""
    rates = bool(field) and not schedule.spans_trunk and not is_set
    rule = stage.mix.replay
    known = known_corpora(state.use_before(stage), rule, rule.retired, stage.corpora)
    replayable = {corpus for corpus, _ in known}
    forgot = [v.subject for v in broken if v.gate == _FORGETTING and v.subject not in replayable]
    fixed = ""
    if not replayable:
        fixed = "there is nothing to replay"
    elif forgot:
        fixed = f"{forgot[0]} is forgotten and not replayed"
    elif stage.mix.unreplayed:
        fixed = "the corpora that it replays are at their replay limit"
    return _Varied(not fixed, rates, field if rates else "", fixed)


def _obstacle_in(stage: Stage, broken: Sequence[Verdict], varied: _Varied) -> str:
    """Return why a search would not mend a stage; "" where it may."""
    for verdict in broken:
        if verdict.value is None or verdict.gate not in (_FORGETTING, *_LEARNING):
            named = f"{verdict.gate} of {verdict.subject}"
            return f"{named} is nothing that a search over held-out losses would mend"
    if stage.start is None:
        return "trials branch off a checkpoint, and the trunk's first stage has none before it"
    return "" if varied.rates else varied.fixed


def _counted(spec: RunSpec, number: int) -> str:
    return f"trial {number} of at most {spec.gates.max_trials}"


def _tried(
    state: RunState, stage: Stage, name: str, trials: Sequence[Trial], varied: _Varied
) -> list[TriedShare]:
    """Return what is known, the stage that began the search first.

    A trial that became the stage counts as the stage was judged: by all bounds.
    """
    number = int(name.removeprefix(GATE_SEARCH).partition("-")[0])
    judged = [
        earlier
        for earlier in (*state.abandoned, stage)
        if int(earlier.name.partition("-")[0]) >= number
        and earlier.corpora == stage.corpora
        and earlier.start == stage.start
        and earlier.name in state.verdicts
    ]
    known = {}
    for earlier in judged:
        losses = [loss.nats_per_token for loss in state.own_losses.get(earlier.name, {}).values()]
        rate = float(earlier.schedule.get(varied.rate_field) or 0.0) if varied.rates else 0.0
        known[earlier.mix.replay.share, rate] = _judged(
            earlier.mix.replay.share,
            rate,
            state.verdicts[earlier.name],
            fmean(losses) if losses else None,
        )
    for trial in trials:
        tried, point = trial.tried[-1], trial.branched.point
        if not isinstance(point, Point):
            continue
        rate = point.eta if varied.rates else 0.0
        known.setdefault(
            (point.replay, rate),
            _judged(point.replay, rate, tried.verdicts, tried.values.get("adaptation")),
        )
    return list(known.values())


def _judged(
    share: float, rate: float, verdicts: Sequence[Verdict], loss: float | None
) -> TriedShare:
    broken = [verdict for verdict in verdicts if not verdict.holds]
    gates = {verdict.gate for verdict in broken}
    other = bool(gates - {_FORGETTING, *_LEARNING})
    return TriedShare(
        share=share,
        rate=rate,
        forgets=other or _FORGETTING in gates,
        lags=other or bool(gates & {*_LEARNING}),
        loss=loss,
        broken=", ".join(map(describe_broken, broken)),
    )


def describe_broken(verdict: Verdict) -> str:
    """Return a bound that is broken, with what was measured, in words."""
    named = f"{verdict.gate} of {verdict.subject}"
    if verdict.value is None:
        return f"{named}: {verdict.reason}"
    return f"{named} is {verdict.value:+.3f}, bound {verdict.bound:g}"


def _fruitless(tried: Sequence[TriedShare], varied: _Varied, trials: int, why: str) -> str:
    """Return what was tried in vain, and why nothing else is."""
    if not trials:
        return f"no trial: {why}"
    rows = [_shown(its, varied) for its in tried[1:]]
    return f"none of {trials} trials holds ({'; '.join(rows)}), and {why}"


def _shown(its: TriedShare, varied: _Varied) -> str:
    rate = f", {varied.rate_field} {its.rate:g}" if varied.rates else ""
    return f"{its.share:.0%} replay{rate}: {its.broken}"


def _bound_reached(spec: RunSpec, stage: Stage, trials: Sequence[Trial]) -> str:
    """Return the bound that another trial would exceed; "" where there is none."""
    gates, length = spec.gates, spec.tokens_per_step
    if len(trials) >= gates.max_trials:
        return f"gates.max_trials allows {gates.max_trials}"
    steps = sum(trial.branched.mix.steps for trial in trials) + stage.steps
    bounds = {
        "gates.search_tokens": gates.search_tokens,
        "limits.search_tokens": spec.limits.search_tokens,
    }
    for field, most in bounds.items():
        if most is not None and steps > most.steps(stage.steps, length):
            return f"another trial would make {steps * length:,} tokens, more than {field}: {most}"
    return ""
