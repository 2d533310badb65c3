"""Choose the trials of a search after a broken gate, and the best of them. Pure.

More replay forgets less and learns less of the new text, so the shares that hold the bounds lie
between those that forget too much and those that learn too little: the search closes in on them. A
lower peak rate does the same to a whole stage, and is what is left where no share holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MOST_REPLAY = 0.5
"""the largest share that arXiv 2403.08763 tried, which adapts clearly worse"""
LEAST_REPLAY = 0.05
"""the least share that a stage which forgot too much is tried with"""
_NEAR = 0.05
"""a share that holds, so much above one that forgets too much, is good enough"""


@dataclass(frozen=True)
class TriedShare:
    """A stage or a trial of it, with how it stands to the bounds.

    share: of its batches that is replay.
    rate: its peak; one number for all where a search does not vary it.
    forgets, lags: whether it forgot too much, and learned too little. Both, where its loss is not a
        number.
    loss: on the new corpora, nats per token; None where it is not known.
    broken: the bounds that it breaks, in words.
    """

    share: float
    rate: float
    forgets: bool
    lags: bool
    loss: float | None
    broken: str = ""

    @property
    def holds(self) -> bool:
        """Return whether it breaks no bound."""
        return not (self.forgets or self.lags)


def next_share(
    tried: Sequence[TriedShare], *, shares: bool = True, rates: bool = False
) -> tuple[float, float] | None:
    """Return share and rate of the next trial; None where no other one promises more.

    Args:
        tried: the stage that broke the gate, and the trials so far.
        shares: vary the share of replay.
        rates: vary the peak rate, by halves.
    """
    rate = min(trial.rate for trial in tried)
    here = [trial for trial in tried if trial.rate == rate]
    share = _share_between(here) if shares else None
    if share is not None:
        return share, rate
    forgot = [trial.share for trial in here if trial.forgets]
    if not rates or not forgot or any(trial.holds for trial in tried):
        return None
    return min(MOST_REPLAY, max(forgot)) if shares else forgot[0], rate / 2


def best_share(tried: Sequence[TriedShare]) -> TriedShare | None:
    """Return the one that learned most of the new text among those that hold; None without one."""
    holding = [trial for trial in tried if trial.holds]

    def rank(trial: TriedShare) -> tuple[float, float]:
        return math.inf if trial.loss is None else trial.loss, trial.share

    return min(holding, key=rank, default=None)


def _share_between(tried: Sequence[TriedShare]) -> float | None:
    """Return a share between what forgets too much and what learns too little, or is known to hold;
    None where there is no whole percent left.
    """
    forgets = max((trial.share for trial in tried if trial.forgets), default=None)
    lags = min((trial.share for trial in tried if trial.lags), default=None)
    holds = min((trial.share for trial in tried if trial.holds), default=None)
    if holds is not None:
        below = max((trial.share for trial in tried if trial.share < holds), default=holds)
        is_near = forgets is None or holds - below <= _NEAR + 1e-9
        return None if is_near else _middle(below, holds)
    if lags is None:
        low = forgets or 0.0
        share = round(min(MOST_REPLAY, max(LEAST_REPLAY, 2 * low)), 2)
        return share if share > low else None
    return _middle(forgets or 0.0, lags)


def _middle(low: float, high: float) -> float | None:
    middle = round((low + high) / 2, 2)
    return middle if low < middle < high else None
