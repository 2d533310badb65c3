"""Measurements that are not numbers: they are named, and never stored as numbers.

JSON has neither NaN nor infinity, an entry of the ledger can never be changed, and a comparison
with NaN is false whichever way it is asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from perennial.evaluation.loss import HeldoutLoss

_NUMBERS = ("nats_per_token", "bits_per_byte")
REASON = "its score is not a number"


def split_finite(
    losses: Mapping[str, HeldoutLoss],
) -> tuple[dict[str, HeldoutLoss], tuple[str, ...]]:
    """Return the losses that are numbers, and the corpora whose loss is not.

    A standard error that is not a number is unknown, and a domain's loss that is not is left out.

    Args:
        losses: held-out losses by corpus, as they were measured.
    """
    kept = {name: _finite_parts(loss) for name, loss in losses.items() if _is_finite(loss)}
    return kept, tuple(name for name in losses if name not in kept)


def _is_finite(loss: HeldoutLoss) -> bool:
    return all(math.isfinite(getattr(loss, name)) for name in _numbers_of(loss.bytes))


def _numbers_of(size_bytes: object) -> tuple[str, ...]:
    """Return the numbers that a loss has; documents of token ids have no bytes."""
    return _NUMBERS if size_bytes else _NUMBERS[:1]


def _finite_parts(loss: HeldoutLoss) -> HeldoutLoss:
    return replace(
        loss,
        stderr_nats_per_token=_finite_or_none(loss.stderr_nats_per_token),
        stderr_of_change=_finite_or_none(loss.stderr_of_change),
        domains=split_finite(loss.domains)[0],
    )


def _finite_or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def names_not_finite(losses: Mapping[str, object]) -> tuple[str, ...]:
    """Return the corpora of a document's losses that are not numbers."""
    kept = drop_not_finite(losses)
    assert isinstance(kept, dict), "as its argument is one"
    return tuple(name for name in losses if name not in kept)


def drop_not_finite(losses: object) -> object:
    """Return a document's losses by corpus without those that are not numbers.

    Args:
        losses: from an event. Older versions wrote NaN and null there; what is no such document is
            returned as it is, for its reader to refuse.
    """
    if not isinstance(losses, Mapping):
        return losses
    kept: dict[str, object] = {}
    for name, loss in losses.items():
        if isinstance(loss, HeldoutLoss):
            kept |= split_finite({name: loss})[0]
        elif not isinstance(loss, Mapping):
            kept[name] = loss
        elif all(_is_number(loss.get(f, 0.0)) for f in _numbers_of(loss.get("bytes", 1))):
            errors = {
                field: value
                for field, value in loss.items()
                if field.startswith("stderr") and not _is_number(value)
            }
            domains = drop_not_finite(loss.get("domains", {}))
            kept[name] = {**loss, **dict.fromkeys(errors), "domains": domains}
    return kept


def explain_not_finite(scores: object) -> object:
    """Return a list of scores with a reason in place of each value that is not a number."""
    if not isinstance(scores, list | tuple):
        return scores
    return [explain_score(score) if isinstance(score, Mapping) else score for score in scores]


def explain_score(score: Mapping[str, Any]) -> dict[str, Any]:
    """Return a score as it is, or as a task without a score where its value is not a number."""
    if "value" in score and not _is_number(score["value"]):
        return {"task": score["task"], "asked": score.get("asked", ""), "reason": REASON}
    errors = [name for name in ("stderr", "stderr_of_change") if name in score]
    unknown = [name for name in errors if not _is_number(score[name])]
    return {**score, **dict.fromkeys(unknown)}


def _is_number(value: object) -> bool:
    # What is of another type is refused by the validator of its field.
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))
