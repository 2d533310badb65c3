"""What texts cost one model, from the losses of held-out documents. Pure.

A mixture of corpora costs what it would if it held so many tokens of each, and each were as its
held-out documents are: a ratio over strata, with the standard error of its linear part (Cochran,
Sampling Techniques, 6.10).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from perennial.evaluation.loss import DocumentLoss


class Ratio(NamedTuple):
    """A ratio of two sums over documents, and its standard error.

    stderr: None where a corpus has a single document.
    """

    value: float
    stderr: float | None


@dataclass(frozen=True)
class TextCost:
    """The cost of a text for a model; None where a loss is not a number, or bytes are not known.

    documents: held-out documents that were measured.
    """

    documents: int
    nats_per_token: Ratio | None
    tokens_per_byte: Ratio | None
    bits_per_byte: Ratio | None


def text_cost(
    losses: Mapping[str, Sequence[DocumentLoss]], weights: Mapping[str, float]
) -> TextCost:
    """Return what a mixture of corpora costs a model.

    Args:
        losses: of the model on held-out documents, by corpus.
        weights: tokens or sequences of each corpus in the mixture, above 0.

    Raises:
        ValueError: a corpus has no documents.
    """
    strata = []
    for corpus, weight in weights.items():
        tokens = sum(loss.tokens for loss in losses[corpus])
        if not tokens:
            raise ValueError(f"corpus {corpus} has no held-out documents")
        strata.append((weight / tokens, losses[corpus]))
    known = all(loss.bytes for _, documents in strata for loss in documents)
    finite = all(math.isfinite(loss.nats) for _, documents in strata for loss in documents)
    return TextCost(
        documents=sum(len(documents) for _, documents in strata),
        nats_per_token=_ratio(strata, _nats, _tokens) if finite else None,
        tokens_per_byte=_ratio(strata, _tokens, _bytes) if known else None,
        bits_per_byte=_ratio(strata, _bits, _bytes) if finite and known else None,
    )


_Count = Callable[[DocumentLoss], float]
_Strata = Sequence[tuple[float, Sequence[DocumentLoss]]]


def _nats(loss: DocumentLoss) -> float:
    return loss.nats


def _bits(loss: DocumentLoss) -> float:
    return loss.nats / math.log(2)


def _tokens(loss: DocumentLoss) -> float:
    return loss.tokens


def _bytes(loss: DocumentLoss) -> float:
    return loss.bytes


def _ratio(strata: _Strata, above: _Count, below: _Count) -> Ratio:
    """Return the ratio of two weighted sums over documents, with its standard error.

    A corpus weighs as many tokens as it is said to, however long the documents are that happened to
    be held out: what varies are its sums per token.
    """
    total = math.fsum(weight * below(loss) for weight, documents in strata for loss in documents)
    ratio = math.fsum(weight * above(loss) for weight, documents in strata for loss in documents)
    ratio /= total
    variance = 0.0
    for weight, documents in strata:
        count = len(documents)
        if count < 2:
            return Ratio(ratio, None)
        left = [above(loss) - ratio * below(loss) for loss in documents]
        per_token = math.fsum(left) / sum(loss.tokens for loss in documents)
        squares = (
            (x - per_token * loss.tokens) ** 2 for x, loss in zip(left, documents, strict=True)
        )
        variance += weight**2 * count / (count - 1) * math.fsum(squares)
    return Ratio(ratio, math.sqrt(variance) / total)
