"""Evaluation of a model: held-out losses, transfer, lm-eval tasks, samples.

`examine` evaluates one checkpoint or release in one Ray task; `LossMatrix` holds the losses of a
run's stages; `perennial.report.figures.run` draws them.
"""

from perennial.evaluation.evaluate import Answers, Loading, Questions, examine, measure
from perennial.evaluation.loss import HeldoutLoss
from perennial.evaluation.matrix import BASE, LossMatrix, corpus_of, pareto_front
from perennial.evaluation.samples import Sample
from perennial.evaluation.scores import NotRun, TaskScore

__all__ = [
    "BASE",
    "Answers",
    "HeldoutLoss",
    "Loading",
    "LossMatrix",
    "NotRun",
    "Questions",
    "Sample",
    "TaskScore",
    "corpus_of",
    "examine",
    "measure",
    "pareto_front",
]
