"""What a model has learned, kept and lost: held-out losses, transfer, lm-eval tasks, samples.

`examine` answers everything about one checkpoint or release in one Ray task; `LossMatrix` puts the
losses of a run's stages side by side; `perennial.evaluation.pictures` draws them.
"""

from perennial.evaluation.examine import Answers, Questions, examine, measure
from perennial.evaluation.loss import HeldoutLoss
from perennial.evaluation.samples import Sample
from perennial.evaluation.tasks import NotRun, TaskScore
from perennial.evaluation.transfer import LossMatrix, corpus_of, pareto_front

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
