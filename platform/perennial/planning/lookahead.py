"""Predict the stages of a run, by the controller's own state machine on a copy of its state. Pure.

Every stage to come is decided by `decide_stage`, the function that `run` decides it with, so a
forecast of a corpus that is ingested is the `Started` event that `run` will write.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from perennial.config.stage_settings import stage_settings
from perennial.errors import InputError
from perennial.mixture import Part, apportion_parts, group_of
from perennial.runs.actions import Outside, next_action
from perennial.runs.entities import names_in
from perennial.runs.events import (
    Evaluated,
    Evaluating,
    Ingesting,
    Landed,
    Passed,
    Ready,
    Retried,
    Trained,
)
from perennial.runs.stage_planner import decide_stage, order_of
from perennial.runs.state import RunState, Stage
from perennial.runs.unattended.gate_response import respond_to_gate
from perennial.runs.unattended.replay_share import ShareDecision
from perennial.training.checkpoint.manifest import folder_of

if TYPE_CHECKING:
    from perennial.config import RunSpec

Basis = Literal["counted", "estimated", "planned"]
"""source of a corpus's size: counted at ingestion, estimated from its files in the inbox, or
planned, where the run file names the corpus and it is taken to hold its budget"""


@dataclass(frozen=True)
class Expected:
    """A corpus that is not ingested yet; `sequences` is None where its size is not known."""

    name: str
    basis: Basis
    sequences: int | None


@dataclass(frozen=True)
class Ahead:
    """The work that is left.

    Attributes:
        stages: those that are not trained to their end, in order, with the basis of their sizes.
        unknown: corpora whose size is known after their ingestion, and those that wait for them.
        state: the run as it will be after `stages`.
    """

    stages: tuple[tuple[Stage, Basis], ...]
    unknown: tuple[str, ...]
    state: RunState


def expected_corpora(
    spec: RunSpec,
    state: RunState,
    inbox: Mapping[str, int],
    sampled: Mapping[str, int] = MappingProxyType({}),
) -> tuple[Expected, ...]:
    """Return the corpora to come.

    Args:
        spec: the run file; the corpora of its `stages.corpora` come last, in its order.
        state: the run as it is.
        inbox: stored bytes of the landed corpora, in the order of landing.
        sampled: tokens of some of them, as samples of their documents say.
    """
    waiting = {c.name: c.size_bytes for c in state.corpora.values() if not c.sequences}
    waiting |= {name: size for name, size in inbox.items() if name not in state.corpora}
    order = order_of(spec)
    planned = [
        name
        for name in spec.stages.corpora
        if name not in waiting
        and name not in state.corpora
        and (order.trains(name) or name in order.proxies)
    ]
    per_byte = _sequences_per_byte(state)
    batch = spec.training.global_batch
    arrived = []
    for name, size in waiting.items():
        sequences = int(size * per_byte) if per_byte else None
        if name in sampled:
            sequences = sampled[name] // spec.corpora.sequence_length
        # At least a batch: no corpus is refused on an estimate.
        sequences = _budgeted(spec, name) if sequences is None else max(batch, sequences)
        arrived.append(Expected(name, "estimated", sequences))
    return (*arrived, *(Expected(name, "planned", _budgeted(spec, name)) for name in planned))


ShareForecast = Callable[[RunState, Sequence[str]], ShareDecision | float | None]
"""returns what a replay share of `auto` is for the next stage of a run, by its new corpora"""


def look_ahead(
    spec: RunSpec,
    state: RunState,
    expected: Sequence[Expected],
    reschedule: bool = False,
    shares: ShareForecast = lambda _state, _new: None,
) -> Ahead:
    """Return every stage that `run` would train, as far as the sizes of the corpora are known.

    Args:
        spec: the run file.
        state: the run as it is; it is not changed.
        expected: the corpora to come.
        reschedule: allow a schedule that is not the trunk's so far.
        shares: what a replay share of `auto` is for a stage.

    Raises:
        InputError: `run` would refuse it, or replay weights name an unknown corpus.
    """
    state = copy.deepcopy(state)
    sizes = {corpus.name: corpus for corpus in expected}
    _check_weights(spec, {*state.corpora, *sizes})
    stages: list[tuple[Stage, Basis]] = []
    outside, order = Outside(list(sizes)), order_of(spec)
    # A corpus that has not landed is not assumed to land together with another one.
    planned = [corpus.name for corpus in expected if corpus.basis == "planned"]
    # Whatever a user has still to accept.
    order = replace(order, alone={*order.alone, *planned}, approval=False)
    while (step := next_action(state, outside, order)) is not None:
        name = step.subject
        match step.verb:
            case "record-landing":
                state.apply(Landed(at="", corpus=name, size_bytes=0))
            case "ingest":
                rows = sizes[name].sequences
                if rows is None:
                    break
                _ingest(spec, state, name, rows)
            case "start":
                auto = shares(state, (name, *step.joined))
                started = decide_stage(spec, state, name, "", "", reschedule, step.joined, auto)
                state.apply(started)
            case "train":
                stage = state.stage_of(name)
                stages.append((stage, _basis(stage, sizes)))
                end = folder_of(stage.folder, stage.last_step)
                state.apply(Trained(at="", corpus=name, checkpoint=end, step=stage.last_step))
            case "evaluate":
                if state.corpora[name].state == "trained":
                    state.apply(Evaluating(at="", corpus=name))
                state.apply(Evaluated(at="", corpus=name, losses={}))
            case "judge":
                state.apply(Passed(at="", corpus=name, verdicts=[]))
            case "retry":
                state.apply(Retried(at="", corpus=name, by_person=False))
            case _:
                break
    left = names_in(state.corpora.values(), "landed", "ingesting", "ready")
    unknown = tuple(name for name in left if order.trains(name))
    return Ahead(tuple(stages), unknown, state)


def notes_on_gates(spec: RunSpec, state: RunState, stages: Sequence[Stage]) -> tuple[str, ...]:
    """Return what follows a gate that is broken, or would follow one, with the bounds of that.

    Args:
        spec: the run file.
        state: the run as it is.
        stages: to come.
    """
    response = respond_to_gate(spec, state)
    if response is not None:
        return (f"{response.corpus}, which a gate stopped: {response.describe()}",)
    gates, length = spec.gates, spec.tokens_per_step
    most = max((stage.steps for stage in stages if stage.after), default=0)
    if not most or gates.on_broken == "stop":
        return ()
    if gates.on_broken == "retry-with-more-replay":
        times = gates.max_retries
        bound = "" if gates.retry_tokens is None else f", for at most {gates.retry_tokens}"
        return (f"a stage that forgets too much is trained again at most {times} times{bound}",)
    limits = (gates.search_tokens, spec.limits.search_tokens)
    steps = min(limit.steps(most, length) for limit in limits if limit is not None)
    trials = min(gates.max_trials, steps // most)
    return (
        f"a broken gate starts a search: at most {trials} trials of the whole stage, of up to "
        f"{trials * most * length:,} tokens together; the best one that holds becomes the stage",
    )


def _ingest(spec: RunSpec, state: RunState, name: str, rows: int) -> None:
    if state.corpora[name].state == "landed":
        state.apply(Ingesting(at="", corpus=name))
    parts = _expected_parts(spec, name, rows)
    tokens = rows * spec.corpora.sequence_length
    state.apply(Ready(at="", corpus=name, sequences=rows, tokens=tokens, digest="", parts=parts))


def _expected_parts(spec: RunSpec, corpus: str, rows: int) -> dict[str, int]:
    """Return parts for the weights of a corpus whose own parts are not known yet.

    Of each part they hold what one pass through the corpus takes.
    """
    override = spec.stages.corpora.get(corpus)
    if override is None or not override.weights:
        return {}
    parts = [Part(name, 0, 1, weight) for name, weight in override.weights.items()]
    taken = {part.name: count for part, count in apportion_parts(rows, parts)}
    return dict.fromkeys(override.weights, 0) | taken


def _basis(stage: Stage, sizes: Mapping[str, Expected]) -> Basis:
    """Return the basis of a stage's size: that of its least known corpus."""
    known: set[Basis] = {sizes[name].basis for name in stage.corpora if name in sizes}
    ranked: tuple[Basis, ...] = ("planned", "estimated")
    return next((basis for basis in ranked if basis in known), "counted")


def _budgeted(spec: RunSpec, corpus: str) -> int | None:
    """Return the sequences of a corpus that holds its budget; None where that is a percentage."""
    budget = stage_settings(spec, corpus).budget
    if budget.unit == "percent":
        return None
    return max(1, budget.steps(0, spec.tokens_per_step)) * spec.training.global_batch


def _sequences_per_byte(state: RunState) -> float:
    """Return the mean sequences per stored byte of the corpora so far; 0 before the first."""
    ready = [c for c in state.corpora.values() if c.sequences and c.size_bytes]
    stored = sum(corpus.size_bytes for corpus in ready)
    return sum(corpus.sequences for corpus in ready) / stored if stored else 0.0


def _check_weights(spec: RunSpec, known: set[str]) -> None:
    for name in spec.replay.weights:
        if name not in known and group_of(spec.replay.groups, name) != name:
            raise InputError(
                "run file",
                f"replay.weights.{name}",
                "no corpus of that name was trained, has landed or is named in stages.corpora",
                f"correct it; known are {', '.join(sorted(known)) or 'none yet'}",
                code="corpus-missing",
            )
