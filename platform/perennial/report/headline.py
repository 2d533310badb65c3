"""State in one sentence what came out of a run. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from perennial.evaluation.compare import Bill, Gap, Model, equal

if TYPE_CHECKING:
    from perennial.evaluation import LossMatrix

_MOST_NAMED = 3
"""Corpora that are named one by one, at most."""
_SURE = 2
"""Standard errors from which a difference is one."""


def headline(matrix: LossMatrix, gap: Gap | None = None, bill: Bill | None = None) -> str:
    """Return what the last stage learned and lost, and how far the run is from retraining.

    Args:
        matrix: the run's losses.
        gap: to a run that was retrained from scratch, where one is known.
        bill: what the run and retraining at every arrival cost.
    """
    if not matrix.stages:
        return "Nothing was measured yet."
    last = len(matrix.stages) - 1
    parts = [f"{matrix.stages[last][0]} {_learned(matrix, last)}", _lost(matrix, last)]
    if gap is not None and gap.average is not None:
        parts.append(_from_retraining(gap, bill))
    return "; ".join(part for part in parts if part) + "."


def _learned(matrix: LossMatrix, stage: int) -> str:
    own = matrix.own(stage)
    gains = {corpus: _gain(matrix, stage, corpus) for corpus in own}
    known = {corpus: gain for corpus, gain in gains.items() if gain is not None}
    if len(known) < len(own):
        after = matrix.adaptation(stage)
        where = own[0] if len(own) == 1 else f"{len(own)} corpora on average"
        return "was trained" if after is None else f"came to {after:.2f} nats a token on {where}"
    if len(own) > _MOST_NAMED:
        mean = sum(known.values()) / len(known)
        verb = "learned" if mean >= 0 else "lost"
        return f"{verb} {abs(mean):.2f} nats a token on average of {len(own)} corpora"
    texts, unit, verb_before = [], " nats a token", ""
    for corpus, gain in known.items():
        verb = "learned" if gain >= 0 else "lost"
        text = f"{abs(gain):.2f}{unit} of {corpus}"
        texts.append(text if verb == verb_before else f"{verb} {text}")
        unit, verb_before = "", verb
    return _join(texts)


def _gain(matrix: LossMatrix, stage: int, corpus: str) -> float | None:
    """Return how far a stage lowered the loss on a corpus that is new in it."""
    after = matrix.nats(stage, corpus)
    if stage:
        before = matrix.nats(stage - 1, corpus)
    else:
        before = matrix.base[corpus].nats_per_token if corpus in matrix.base else None
    return None if before is None or after is None else before - after


def _lost(matrix: LossMatrix, stage: int) -> str:
    errors = matrix.forgetting_stderr(stage)
    changes = {c: rise for c, rise in matrix.forgetting(stage).items() if rise is not None}
    mean = matrix.mean_forgetting(stage)
    is_drawn = mean is not None and mean.measured < mean.of
    if len(changes) <= _MOST_NAMED and not is_drawn:
        return _join([_change(c, rise, errors[c]) for c, rise in changes.items()])
    worst = max(changes, key=lambda corpus: changes[corpus])
    nats = fmean(changes.values()) if mean is None else mean.nats_per_token
    verb = "lost" if nats >= 0 else "gained"
    number, over = len(changes), "of them"
    if mean is not None and is_drawn:
        number, over = mean.of, f"of the {mean.measured} that were measured"
    return (
        f"{number} earlier corpora {verb} {abs(nats):.2f} on average, and {over} "
        f"{_change(worst, changes[worst], errors[worst])}, the worst"
    )


def _change(corpus: str, rise: float, stderr: float | None) -> str:
    if stderr is not None and abs(rise) < _SURE * stderr:
        return f"{corpus} is unchanged (to {_SURE * stderr:.2f})"
    return f"{corpus} {'lost' if rise >= 0 else 'gained'} {abs(rise):.2f}"


def _from_retraining(gap: Gap, bill: Bill | None) -> str:
    ours, theirs, mean = gap.ours, gap.theirs, gap.average
    assert mean is not None
    which = "the release" if _is_release(ours) else "the trunk"
    other = f"{theirs.run}, retrained"
    cost = ", at equal tokens"
    if not equal(ours, theirs):
        which, cost = f"{which} ({ours.tokens:,} tokens)", f" ({theirs.tokens:,} tokens)"
    elif bill is not None and len(bill.arrivals) > 1:
        cost = f", at {1 - bill.saved:.0%} of the compute of retraining at every arrival"
    if mean.stderr is not None and abs(mean.nats_per_token) < _SURE * mean.stderr:
        return f"{which} is as good as {other}{cost} (to {_SURE * mean.stderr:.2f} nats)"
    word = "worse" if mean.nats_per_token > 0 else "better"
    return f"{which} is {abs(mean.nats_per_token):.2f} nats {word} than {other}{cost}"


def _is_release(model: Model) -> bool:
    return model.key.startswith("releases/")


def _join(texts: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return " and ".join(part for part in (", ".join(texts[:-1]), *texts[-1:]) if part)
