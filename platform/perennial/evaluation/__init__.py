"""What a model has learned, kept and lost: held-out losses, transfer, lm-eval tasks, samples.

`examine` answers everything about one checkpoint or release in one Ray task; `LossMatrix` puts the
losses of a run's stages side by side; `perennial.report.figures.run` draws them.
"""

from perennial.evaluation.evaluate import Answers, Questions, examine, measure
from perennial.evaluation.loss import HeldoutLoss
from perennial.evaluation.matrix import LossMatrix, corpus_of, pareto_front
from perennial.evaluation.samples import Sample
from perennial.evaluation.tasks import NotRun, TaskScore

__all__ = [
    "Answers",
    "HeldoutLoss",
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
