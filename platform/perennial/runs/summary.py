"""Summarise a run from its ledger: matrix, rates, tokens, states. Mostly pure."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from perennial.corpora import load_tokenizer
from perennial.evaluation import LossMatrix
from perennial.evaluation.scores import Score
from perennial.runs.actions import waits_to_extend
from perennial.runs.entities import names_in
from perennial.runs.stage_planner import order_of
from perennial.runs.state import Corpus, RunState, Stage
from perennial.runs.unattended.gate_response import respond_to_gate
from perennial.schedules import AbsentSchedule, Schedule, from_dict
from perennial.training.checkpoint.manifest import latest_step

if TYPE_CHECKING:
    from perennial.config import RunSpec
    from perennial.store import Store

T = TypeVar("T")


class RatePoint(NamedTuple):
    """The learning rate `eta` of one step of the trunk."""

    step: int
    eta: float
    phase: str
    stage: str


class StageTokens(NamedTuple):
    """The tokens of a stage by corpus, new and replayed."""

    stage: str
    new: Mapping[str, int]
    replayed: Mapping[str, int]

    @property
    def total(self) -> int:
        """Return the number of all tokens of the stage."""
        return sum(self.new.values()) + sum(self.replayed.values())


def matrix(state: RunState, last: int | None = None) -> LossMatrix:
    """Return the matrix of held-out losses, stages by corpora, and those of releases.

    Args:
        state: the run as of the last read of the ledger.
        last: number of stages with all their losses, and of releases; default all of them. Stages
            before those have the losses on their own corpora, from which forgetting is counted.
    """
    measured = [stage.name for stage in state.stages if stage.name in state.losses]
    whole = _tail(measured, last)
    before = measured[: len(measured) - len(whole)]
    stages = (
        *((name, state.own_losses[name]) for name in before),
        *((name, state.losses[name]) for name in whole),
    )
    releases = tuple((r.name, r.losses) for r in _tail(state.releases, last))
    together = {s.name: s.corpora for s in state.stages if len(s.corpora) > 1}
    origins = tuple((o.name, o.losses) for o in state.origins.values() if o.losses)
    proxies = {stage.name: stage.replayed_proxies for stage in state.stages}
    replayed = {name: corpora for name, corpora in proxies.items() if corpora}
    erased = frozenset(names_in(state.corpora.values(), "erased"))
    draws = {name: draw for name in whole if (draw := state.draws.get(name)) is not None}
    return LossMatrix(
        stages, releases, together, origins, replayed, erased, draws, since=len(before)
    )


def references(state: RunState, stage: Stage) -> dict[str, str]:
    """Return, by corpus, the model from which forgetting at the end of a stage is counted.

    The end of the corpus's own stage, or the base where it has none so far.
    """
    known = dict.fromkeys(state.base.losses, state.base.folder) if state.base else {}
    for earlier in (*state.lineage(stage), stage):
        if earlier.name in state.ends:
            known |= dict.fromkeys(earlier.corpora, state.ends[earlier.name])
    return known


def untrained_nats(store: Store) -> float:
    """Return the loss of a uniform model of the vocabulary, in nats per token."""
    return math.log(load_tokenizer(store).vocabulary)


def _tail(items: Sequence[T], last: int | None) -> Sequence[T]:
    return items if last is None else items[max(0, len(items) - last) :]


def tokens_by_source(
    state: RunState, sequence_length: int, last: int | None = None
) -> dict[str, dict[str, Any]]:
    """Return, by stage, `new` tokens in all and by corpus, and `replayed` tokens by corpus.

    `parts` are the tokens by part of the corpora that have any.

    Args:
        state: the run as of the last read of the ledger.
        sequence_length: tokens of one sequence.
        last: number of stages, counted from the end of the trunk; default all of them.
    """
    stages = {}
    for stage in _tail(state.stages, last):
        trained = state.trained(stage, stage.last_step)
        counts = {corpus: count * sequence_length for corpus, count in trained.items()}
        new = {corpus: counts.pop(corpus) for corpus in stage.corpora}
        parts = {
            corpus: {part: count * sequence_length for part, count in its.items()}
            for corpus, its in state.trained_parts(stage).items()
        }
        stages[stage.name] = {"new": sum(new.values()), "new_by_corpus": new, "replayed": counts}
        stages[stage.name] |= {"parts": parts} if parts else {}
    return stages


def tokens_until(state: RunState, stage: Stage, step: int, sequence_length: int) -> int:
    """Return the tokens of all batches of the trunk until a step; each stage has its own batch.

    Args:
        state: the run as of the last read of the ledger.
        stage: the stage that the trunk is in.
        step: trunk step.
        sequence_length: tokens of one sequence.
    """
    behind = list(takewhile(lambda its: its.name != stage.name, reversed(state.stages)))
    if len(behind) < min(SHOWN_STAGES, len(state.stages)):
        # From the trunk's end, whose sum is kept: a look at the last stages reads no others.
        later = sum(source.sequences for its in (*behind, stage) for source in its.mix.sources)
        before = sum(state.use.seen.values()) - later
    else:
        before = sum(state.use_before(stage).seen.values())
    return (before + (step - stage.first_step) * stage.mix.global_batch) * sequence_length


def gated(spec: RunSpec, state: RunState) -> dict[str, Any] | None:
    """Return the stage that a gate stopped, its verdicts, and what follows by itself; or None.

    Args:
        spec: the run file.
        state: the run as of the last read of the ledger.
    """
    stage = state.gated
    if stage is None:
        return None
    verdicts, response = state.verdicts[stage.name], respond_to_gate(spec, state)
    return {
        "stage": stage.name,
        "corpora": list(stage.corpora),
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "response": response.describe() if response else "",
    }


SHOWN_STAGES = 100
"""Stages that report, pictures and tables of a run show one by one: the last ones."""


def recent_names(rows: Mapping[str, object]) -> list[str]:
    """Return the names of the last stages that have a row, without reading any."""
    return list(rows)[-SHOWN_STAGES:]


_CURVE_POINTS = 600
"""Points of a stage's curve in a picture, at most."""


def rate_points(stages: Sequence[Stage]) -> list[RatePoint]:
    """Return the trunk's learning rate at as many steps as a picture can show."""
    points = []
    for stage in stages:
        schedule = from_dict(stage.schedule)
        stride = max(1, stage.mix.steps // _CURVE_POINTS)
        steps = [*range(stage.first_step, stage.last_step, stride), stage.last_step - 1]
        points += [
            RatePoint(step, schedule.eta(step), schedule.phase(step), stage.name) for step in steps
        ]
    return points


def trunk_rates(stages: Sequence[Stage]) -> list[float]:
    """Return the learning rate at evenly spaced steps of the trunk, the last step among them."""
    if not stages:
        return []
    ends = [stage.last_step for stage in stages]
    points = min(ends[-1], _CURVE_POINTS)
    rates, curves = [], dict[int, Schedule]()
    for point in range(1, points + 1):
        step = point * ends[-1] // points - 1
        number = bisect_right(ends, step)
        if number not in curves:
            curves = {number: from_dict(stages[number].schedule)}
        rates.append(curves[number].eta(step))
    return rates


def stage_tokens(
    state: RunState, sequence_length: int, last: int | None = None
) -> list[StageTokens]:
    """Return the tokens by source of stages, as `tokens_by_source` counts them."""
    return [
        StageTokens(name, tokens["new_by_corpus"], tokens["replayed"])
        for name, tokens in tokens_by_source(state, sequence_length, last).items()
    ]


def scores_before(state: RunState, stage: Stage) -> list[Score]:
    """Return the scores of the model that a stage started from."""
    if stage.start is None:
        return state.base.scores if state.base else []
    start = next((s.name for s in state.stages if state.ends.get(s.name) == stage.start), "")
    return state.stage_scores.get(start, [])


def position(store: Store, state: RunState) -> dict[str, Any] | None:
    """Return stage, step and phase of the trunk's last committed checkpoint, or None."""
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


def describe_states(store: Store, spec: RunSpec, state: RunState) -> dict[str, str]:
    """Describe every corpus for users: its state, and how far it is.

    Args:
        store: the run's store, whose checkpoints give the step.
        spec: the run file.
        state: the run as of the last read of the ledger.

    Returns:
        The descriptions by corpus.
    """
    descriptions: dict[str, str] = {}
    order = order_of(spec)
    stage_of = {name: stage for stage in state.stages for name in stage.corpora}
    released = {decided.source: name for name, decided in state.branches.items()}
    released |= {decided.source: name for name, decided in state.releasing.items()}
    for name, corpus in state.corpora.items():
        match corpus.state:
            case "training":
                where = position(store, state) or {}
                descriptions[name] = f"training ({where['phase']}, step {where['step']:,})"
            case "failed":
                when = corpus.next_try or "waits for `retry`"
                tries = f"attempt {corpus.attempt} of {corpus.attempts}"
                descriptions[name] = f"failed ({tries}, next {when})"
            case "passed" | "retired":
                release = released.get(state.ends[stage_of[name].name])
                descriptions[name] = _describe_released(state, corpus, release)
            case "landed" if waits_to_extend(state, order, corpus):
                descriptions[name] = f"landed (waits for the entries of {state.growing[0]})"
            case "ready" if name in spec.stages.proxies:
                descriptions[name] = "replayed, never a stage"
            case "ready" if not order.trains(name):
                descriptions[name] = "measured only"
            case "ready" if not order.may_begin(corpus):
                descriptions[name] = "ready (waits for `accept`)"
            case other:
                descriptions[name] = other
    return descriptions


def _describe_released(state: RunState, corpus: Corpus, release: str | None) -> str:
    """Return `releasing` or `released` where the end of a corpus's stage is, or its state."""
    if corpus.state == "retired" or release is None:
        return corpus.state
    return "releasing" if release in state.releasing else "released"
