"""Suites of lm-eval tasks by name, with the shots, metrics and versions that they were made with.

The two suites of Ibrahim et al. 2024 (arXiv 2403.08763, section 5.4 and appendix). A task of
another version is not run, because its score would not be comparable over time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perennial.evaluation.scores import TaskScore

AVERAGE = "average"


@dataclass(frozen=True)
class SuiteTask:
    """A task of a suite: number of examples in its prompt, metric, and version in lm-eval."""

    task: str
    shots: int
    metric: str
    version: str


@dataclass(frozen=True)
class Suite:
    """Tasks whose plain mean is the suite's score; `absent` gives the reason for missing ones."""

    tasks: tuple[SuiteTask, ...]
    absent: Mapping[str, str] = field(default_factory=dict)


SUITES: Mapping[str, Suite] = {
    # Table 5. NaturalQuestions with 5 examples as in section 5.4 (a caption of the paper says 0).
    "paper-english": Suite(
        (
            SuiteTask("hellaswag", 0, "acc_norm", "1.0"),
            SuiteTask("arc_challenge", 0, "acc", "1.0"),
            SuiteTask("arc_easy", 0, "acc", "1.0"),
            SuiteTask("boolq", 0, "acc", "2.0"),
            SuiteTask("mathqa", 0, "acc", "1.0"),
            SuiteTask("mmlu", 5, "acc", "2"),
            SuiteTask("openbookqa", 0, "acc", "1.0"),
            SuiteTask("piqa", 0, "acc", "1.0"),
            SuiteTask("winogrande", 0, "acc", "1.0"),
            SuiteTask("truthfulqa_mc1", 0, "acc", "2.0"),
            SuiteTask("truthfulqa_mc2", 0, "acc", "3.0"),
            SuiteTask("nq_open", 5, "exact_match", "4.0"),
            SuiteTask("triviaqa", 5, "exact_match", "3.0"),
        )
    ),
    # Okapi's translations, not the paper's own: comparable in kind, not in value.
    "paper-german": Suite(
        (
            SuiteTask("hellaswag_de", 0, "acc_norm", "1.0"),
            SuiteTask("arc_de", 0, "acc", "2.0"),
            SuiteTask("m_mmlu_de", 5, "acc", "0.0"),
        ),
        {"triviaqa_de": "lm-eval has no German TriviaQA"},
    ),
}


def chosen(scores: Sequence[TaskScore], wanted: SuiteTask) -> list[TaskScore]:
    """Return the scores of a task itself on the suite's metric, not of its parts.

    Args:
        scores: everything that lm-eval returned for the task.
        wanted: the task of the suite.
    """
    return [
        score
        for score in scores
        if score.task == wanted.task and score.metric.partition(",")[0] == wanted.metric
    ]


def mean(scores: Sequence[TaskScore]) -> tuple[float, float | None]:
    """Return the plain mean of independent tasks, and its standard error where all have one."""
    errors = [score.stderr for score in scores if score.stderr is not None]
    stderr = math.hypot(*errors) / len(scores) if len(errors) == len(scores) else None
    return fmean(score.value for score in scores), stderr
