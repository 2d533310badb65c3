"""Scores of lm-eval tasks, as the ledger and reports hold them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import stdev
from typing import cast

from typing_extensions import TypedDict


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task. The score of a model that guesses is not 0.

    samples: number of items that the value is a mean of.
    asked: name in the run file: of the task, its group or suite, or the path of a folder.
    stderr_of_change: standard error of this score minus that of the reference model. Items are
        paired, so the difficulty of an item cancels.
    items: digest and score of every item, where lm-eval reports them; groups have none.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    version: str
    samples: int
    asked: str = ""
    stderr_of_change: float | None = None
    items: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class NotRun:
    """A task without a score, and the reason; `asked` as in `TaskScore`."""

    task: str
    reason: str
    asked: str = ""


class Score(TypedDict, total=False):
    """A task's score, or the reason for which it was not run, as ledger and reports hold it."""

    task: str
    metric: str
    value: float
    stderr: float | None
    version: str
    samples: int
    reason: str
    asked: str
    stderr_of_change: float | None


def plain(outcome: TaskScore | NotRun) -> Score:
    """Return the outcome for the ledger, without the scores of single items."""
    fields = {name: value for name, value in asdict(outcome).items() if name != "items"}
    return cast(Score, fields)


def paired_stderr(
    items: Sequence[tuple[str, float]], before: Sequence[tuple[str, float]]
) -> float | None:
    """Return the standard error of the mean change over the same items.

    Args:
        items: digest and score of every item.
        before: the same of the reference model.

    Returns:
        None where the items are not the same, or fewer than two.
    """
    if len(items) < 2 or [digest for digest, _ in items] != [digest for digest, _ in before]:
        return None
    changes = [now - then for (_, now), (_, then) in zip(items, before, strict=True)]
    return stdev(changes) / math.sqrt(len(changes))
