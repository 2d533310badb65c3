"""Draw the earlier corpora that a stage's end is measured on, and say what they tell of all. Pure.

The corpora are divided by their order into as many parts as are measured, and of each part the one
is drawn that was not measured for the longest time. So a draw is spread evenly over the trunk's
age, and of P corpora each is drawn at least once in 2 P / N + 1 draws of N.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, variance
from typing import NamedTuple

from perennial.evaluation.loss import Change


@dataclass(frozen=True)
class Draw:
    """The earlier corpora that a stage's end is measured on, where a budget leaves others out.

    always: those that a gate names.
    drawn: those that were drawn of the others.
    of: number of the others that can be forgotten: trained before, or known to the base.
    """

    always: tuple[str, ...]
    drawn: tuple[str, ...]
    of: int


def draw_corpora(pool: Sequence[str], measured: Mapping[str, int], count: int) -> tuple[str, ...]:
    """Return at most so many corpora, one of each of as many equal parts of the pool.

    Args:
        pool: corpora in the order in which they were trained.
        measured: number of the last stage that each was measured after; none where it never was.
        count: of corpora, at least 1.
    """
    parts = min(count, len(pool))
    ends = [len(pool) * part // parts for part in range(parts + 1)] if parts else [0]
    return tuple(
        min(pool[first:end], key=lambda name: measured.get(name, -1))
        for first, end in pairwise(ends)
    )


class MeanForgetting(NamedTuple):
    """The mean rise of the loss on corpora that can be forgotten, in nats per token.

    stderr: its standard error, over documents and over the corpora that were not drawn; None where
        it is not known.
    measured: number of the corpora that were measured.
    of: number of those that the mean is of.
    """

    nats_per_token: float
    stderr: float | None
    measured: int
    of: int

    def describe(self) -> str:
        """Return the value with its error; and over how many corpora it is, where not over all."""
        error = "" if self.stderr is None else f" ± {self.stderr:.3f}"
        over = "" if self.measured == self.of else f", over {self.measured:,} of {self.of:,}"
        return f"{self.nats_per_token:+.3f}{error}{over}"


def mean_forgetting(
    always: Sequence[Change], drawn: Sequence[Change], of: int
) -> MeanForgetting | None:
    """Return the mean over all corpora from those that were measured.

    It is that of a stratified sample in two steps, corpora and their documents (Cochran, Sampling
    Techniques, 5.3 and 10.3); the drawn ones are taken as if they were drawn at random.

    Args:
        always: forgetting of the corpora that are measured every time.
        drawn: of those that were drawn.
        of: number of corpora that these were drawn from; those that were are among them.

    Returns:
        None where there is nothing to forget, or nothing was drawn of what there is.
    """
    of = max(of, len(drawn))
    whole = len(always) + of
    if not whole or (of and not drawn):
        return None
    total = math.fsum(change.nats_per_token for change in always)
    if of:
        total += of * fmean(change.nats_per_token for change in drawn)
    errors = [_sum_of_squares(always), _variance_of_mean(drawn, of)]
    known = [error for error in errors if error is not None]
    stderr = None
    if len(known) == len(errors):
        stderr = math.sqrt(known[0] + of**2 * known[1]) / whole
    return MeanForgetting(total / whole, stderr, len(always) + len(drawn), whole)


def _variance_of_mean(drawn: Sequence[Change], of: int) -> float | None:
    """Return the variance of the mean of what was drawn, over corpora and documents."""
    if not of:
        return 0.0
    share, within = len(drawn) / of, _sum_of_squares(drawn)
    if share == 1:
        return None if within is None else within / of**2
    if len(drawn) < 2:
        return None
    between = variance([change.nats_per_token for change in drawn]) / len(drawn)
    if within is None:
        return between  # as if of endlessly many: rather too large than too small
    return (1 - share) * between + share * within / len(drawn) ** 2


def _sum_of_squares(changes: Sequence[Change]) -> float | None:
    errors = [change.stderr for change in changes if change.stderr is not None]
    return math.fsum(error**2 for error in errors) if len(errors) == len(changes) else None
