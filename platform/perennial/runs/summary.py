"""What the ledger says a run has achieved: matrix, rates, tokens, states. Mostly pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from perennial.corpora import load_tokenizer
from perennial.evaluation import LossMatrix
from perennial.evaluation.scores import Score
from perennial.runs.stage_planner import order_of
from perennial.runs.state import RunState, Stage
from perennial.schedules import AbsentSchedule, from_dict
from perennial.training.checkpoint.manifest import latest_step

if TYPE_CHECKING:
    from perennial.config import RunSpec
    from perennial.store import Store


class RatePoint(NamedTuple):
    """The learning rate `eta` of one step of the trunk."""

    step: int
    eta: float
    phase: str
    stage: str


class StageTokens(NamedTuple):
    """Tokens that a stage trained on, by corpus: new ones, and replayed ones."""

    stage: str
    new: Mapping[str, int]
    replayed: Mapping[str, int]

    @property
    def total(self) -> int:
        """All tokens of the stage."""
        return sum(self.new.values()) + sum(self.replayed.values())


def matrix(state: RunState) -> LossMatrix:
    """The stage x corpus held-out losses, and those of releases."""
    stages = tuple(
        (stage.name, state.losses.get(stage.name, {}))
        for stage in state.stages
        if stage.name in state.losses
    )
    releases = tuple((r.name, r.losses) for r in state.releases)
    together = {s.name: s.corpora for s in state.stages if len(s.corpora) > 1}
    return LossMatrix(stages, releases, together)


def references(state: RunState) -> dict[str, str]:
    """By corpus, the checkpoint at the end of its own stage, which forgetting is counted from."""
    trained = [stage for stage in state.stages if stage.name in state.ends]
    return {name: state.ends[stage.name] for stage in trained for name in stage.corpora}


def untrained_nats(store: Store) -> float:
    """Loss of a model that knows nothing and finds every token of the vocabulary as likely."""
    return math.log(load_tokenizer(store).vocabulary)


def tokens_by_source(state: RunState, sequence_length: int) -> dict[str, dict[str, Any]]:
    """By stage: `new` tokens in all and by corpus, and `replayed` tokens by corpus."""
    told = {}
    for stage in state.stages:
        trained = state.trained(stage, stage.last_step)
        counts = {corpus: count * sequence_length for corpus, count in trained.items()}
        new = {corpus: counts.pop(corpus) for corpus in stage.corpora}
        told[stage.name] = {"new": sum(new.values()), "new_by_corpus": new, "replayed": counts}
    return told


def gated(state: RunState) -> dict[str, Any] | None:
    """The stage that a gate stopped and its verdicts, or None."""
    stage = state.gated
    if stage is None:
        return None
    verdicts = state.verdicts[stage.name]
    return {
        "stage": stage.name,
        "corpora": list(stage.corpora),
        "verdicts": [asdict(verdict) for verdict in verdicts],
    }


_CURVE_POINTS = 600
"""Points of a stage's curve in a picture, at most."""


def rate_points(stages: Sequence[Stage]) -> list[RatePoint]:
    """The trunk's learning rate, thinned out to what a picture can show."""
    points = []
    for stage in stages:
        schedule = from_dict(stage.schedule)
        stride = max(1, stage.mix.steps // _CURVE_POINTS)
        steps = [*range(stage.first_step, stage.last_step, stride), stage.last_step - 1]
        points += [
            RatePoint(step, schedule.eta(step), schedule.phase(step), stage.name) for step in steps
        ]
    return points


def stage_tokens(state: RunState, sequence_length: int) -> list[StageTokens]:
    """Tokens by source of every stage."""
    return [
        StageTokens(name, tokens["new_by_corpus"], tokens["replayed"])
        for name, tokens in tokens_by_source(state, sequence_length).items()
    ]


def scores_before(state: RunState, stage: Stage) -> list[Score]:
    """Scores of the checkpoint that a stage started from."""
    start = next((s.name for s in state.stages if state.ends.get(s.name) == stage.start), "")
    return state.stage_scores.get(start, [])


def position(store: Store, state: RunState) -> dict[str, Any] | None:
    """Where the trunk stands: stage, step and phase of its last committed checkpoint."""
    if not state.stages:
        return None
    stage = state.stages[-1]
    step = latest_step(store, stage.folder)
    if step is None:
        return {"stage": stage.name, "step": stage.first_step, "phase": "starting"}
    schedule = from_dict(stage.schedule)
    phase: str = schedule.phase(step - 1)
    if isinstance(schedule, AbsentSchedule):
        phase = f"{phase} (no installed package brings the schedule {stage.schedule['kind']!r})"
    return {"stage": stage.name, "step": step, "phase": phase}


def told_states(store: Store, spec: RunSpec, state: RunState) -> dict[str, str]:
    """What a person reads of each corpus: its state, and how far it is."""
    told: dict[str, str] = {}
    for name, corpus in state.corpora.items():
        match corpus.state:
            case "training":
                where = position(store, state) or {}
                told[name] = f"training ({where['phase']}, step {where['step']:,})"
            case "failed":
                when = corpus.next_try or "waits for `retry`"
                told[name] = f"failed (attempt {corpus.attempt} of {corpus.attempts}, next {when})"
            case "passed" | "retired":
                told[name] = _released(state, name) or corpus.state
            case "ready" if not order_of(spec).trains(name):
                told[name] = "measured only"
            case other:
                told[name] = other
    return told


def _released(state: RunState, corpus: str) -> str:
    """`releasing` or `released` when the end of a corpus's stage is."""
    stage = state.stage_of(corpus)
    if state.corpora[corpus].state == "retired":
        return ""
    mine = [b.name for b in state.branches.values() if b.source == state.ends[stage.name]]
    if not mine:
        return ""
    return "releasing" if any(name in state.releasing for name in mine) else "released"
