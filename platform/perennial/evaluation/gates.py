"""Gates: the bounds that a stage's measurements must satisfy. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from perennial.config.gates import GatesSpec, TaskGate
    from perennial.evaluation.loss import Change
    from perennial.evaluation.matrix import LossMatrix


@dataclass(frozen=True)
class Verdict:
    """The result of comparing one bound of a gate with its measurement.

    gate: `max_forgetting`, `max_adaptation`, `min_gain`, `tasks` or `tasks.max_drop`, as in the run
        file; `finite` is no bound of it, and always asked.
    subject: the corpus or the task.
    value: the measurement; None when there is none, and `reason` says why.
    stderr: its standard error, None where it is unknown.
    """

    gate: str
    subject: str
    value: float | None
    stderr: float | None
    bound: float
    holds: bool
    reason: str = ""


@dataclass(frozen=True)
class Measurements:
    """Measurements of the last stage of a matrix.

    Where the trunk starts from a stored model, the first stage is compared with that, the base.

    gains: fall of the loss on the stage's own corpora since the checkpoint that it started from,
        with the standard error over paired documents; a corpus without one was not measured.
    scores: of the stage's end on tasks, with the gate's name as `asked`.
    scores_before: of the checkpoint that the stage started from.
    not_finite: corpora on which the stage's loss is not a number.
    """

    matrix: LossMatrix
    gains: Mapping[str, Change] = field(default_factory=dict)
    scores: Sequence[Mapping[str, Any]] = ()
    scores_before: Sequence[Mapping[str, Any]] = ()
    not_finite: Sequence[str] = ()

    @property
    def has_before(self) -> bool:
        """Return whether the stage started from a model that knew something."""
        return len(self.matrix.stages) > 1 or bool(self.matrix.origins)


def judge(bounds: GatesSpec, measured: Measurements) -> list[Verdict]:
    """Return a verdict for every bound. A bound without a measurement does not hold.

    A loss that is not a number is a verdict that does not hold, whatever the bounds: the model is
    broken, and the next stage must not start from it unseen.
    """
    stage = len(measured.matrix.stages) - 1
    return [
        *(
            Verdict("finite", corpus, None, None, 0.0, False, "its held-out loss is not a number")
            for corpus in measured.not_finite
        ),
        *_forgetting(bounds, measured.matrix, stage),
        *_own_corpora(bounds, measured, stage),
        *chain.from_iterable(
            _task(bounds, name, gate, measured) for name, gate in bounds.tasks.items()
        ),
    ]


def _forgetting(bounds: GatesSpec, matrix: LossMatrix, stage: int) -> Iterator[Verdict]:
    if bounds.max_forgetting is None:
        return
    errors = matrix.forgetting_stderr(stage)
    for corpus, nats in matrix.forgetting(stage).items():
        if bounds.corpora and not is_named(bounds.corpora, corpus):
            continue
        yield _below(
            "max_forgetting",
            corpus,
            nats,
            errors[corpus],
            bounds.max_forgetting,
            bounds.standard_errors,
        )


def is_named(globs: Sequence[str], corpus: str) -> bool:
    """Return whether a corpus has one of these names, or matches one of these globs."""
    return any(fnmatchcase(corpus, glob) for glob in globs)


def _own_corpora(bounds: GatesSpec, measured: Measurements, stage: int) -> Iterator[Verdict]:
    slack = bounds.standard_errors
    for corpus in measured.matrix.own(stage):
        after = measured.matrix.stages[stage][1].get(corpus)
        if bounds.max_adaptation is not None:
            nats = None if after is None else after.nats_per_token
            error = None if after is None else after.stderr_nats_per_token
            yield _below("max_adaptation", corpus, nats, error, bounds.max_adaptation, slack)
        if bounds.min_gain is not None and measured.has_before:
            gain, error = measured.gains.get(corpus, (None, None))
            yield _above("min_gain", corpus, gain, error, bounds.min_gain, slack)


def _task(
    bounds: GatesSpec, name: str, gate: TaskGate, measured: Measurements
) -> Iterator[Verdict]:
    """Yield verdicts for every task of a gate, on the gate's metric or the task's first."""
    mine = [score for score in measured.scores if score["asked"] == name]
    chosen: dict[str, Mapping[str, Any]] = {}
    bound = gate.min if gate.min is not None else gate.max_drop or 0.0
    for score in mine:
        if "reason" in score:
            yield Verdict("tasks", score["task"], None, None, bound, False, score["reason"])
        elif gate.metric in (None, score["metric"]):
            chosen.setdefault(score["task"], score)
    slack = bounds.standard_errors
    for task, score in chosen.items():
        if gate.min is not None:
            yield _above("tasks", task, score["value"], score["stderr"], gate.min, slack)
        if gate.max_drop is not None and measured.has_before:
            change = change_of(score, measured.scores_before)
            drop, error = (None, None) if change is None else (-change.value, change.stderr)
            yield _below("tasks.max_drop", task, drop, error, gate.max_drop, slack)
    if not chosen and not any("reason" in score for score in mine):
        reason = f"it gave no {gate.metric}" if mine else "it was not run"
        yield Verdict("tasks", name, None, None, bound, False, reason)


class ScoreChange(NamedTuple):
    """A score minus an earlier one on the same items, and its standard error.

    The error is over paired items; without scores of items (for groups and means) it is that of
    independent items, which is too large rather than too small.
    """

    value: float
    stderr: float | None


def change_of(score: Mapping[str, Any], before: Sequence[Mapping[str, Any]]) -> ScoreChange | None:
    """Return the change of a task's score; None where there is no earlier one.

    Args:
        score: of the stage's end.
        before: scores of the checkpoint that the stage started from.
    """
    for old in before:
        if "value" in old and all(old[key] == score[key] for key in ("asked", "task", "metric")):
            errors = (old["stderr"], score["stderr"])
            known = [error for error in errors if error is not None]
            stderr = score.get("stderr_of_change")
            if stderr is None and len(known) == len(errors):
                stderr = math.hypot(*known)
            return ScoreChange(score["value"] - old["value"], stderr)
    return None


def _verdict(
    gate: str,
    subject: str,
    value: float | None,
    stderr: float | None,
    bound: float,
    standard_errors: float,
    *,
    at_most: bool,
) -> Verdict:
    """Compare a value with its bound, which is broken only by more than the standard errors."""
    if value is None:
        return Verdict(gate, subject, None, None, bound, False, "it was not measured")
    slack = standard_errors * (stderr or 0.0)
    holds = value - slack <= bound if at_most else value + slack >= bound
    return Verdict(gate, subject, value, stderr, bound, holds)


_below = partial(_verdict, at_most=True)
_above = partial(_verdict, at_most=False)
