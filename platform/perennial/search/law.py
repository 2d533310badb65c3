"""Fit the loss as a function of replay share, learning rate and tokens to finished trials.

The D-CPT law (arXiv 2406.01375) for a mix that holds a share s of a corpus, after D tokens, is
L = E + A / N^a + B s^n / D^b + C / (s + e)^g. N is one model's here, so that A / N^a is part of E.
The learning rate is not in it: a parabola in its logarithm is added, and its product with the last
term, because little replay forgets the more the higher the rate. For fixed exponents all this is
linear in the rest, so that the exponents are chosen among a few by how well trials are predicted
that were left out of the fit. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

LEAST_TRIALS = 5
_EXPONENTS: tuple[tuple[float, ...], ...] = tuple(
    product((0.5, 1.0, 2.0), (0.3, 1.0), (0.01, 0.05, 0.2), (0.25, 0.5, 1.0))
)  # n, b, e, g
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)


class Seen(NamedTuple):
    """One measurement of a trial.

    Attributes:
        trial: its number; measurements of one trial are left out together.
        eta: learning rate.
        share: of the corpus that the loss is on, in the mix, 0 to 1.
        tokens: that the trial had trained.
        loss: nats per token.
        kind: what else the trials differ in, such as the weighting; every kind has its own level.
    """

    trial: int
    eta: float
    share: float
    tokens: float
    loss: float
    kind: str = ""


@dataclass(frozen=True)
class Law:
    """A fitted law. `error` is the root mean square over trials that were left out, in nats."""

    exponents: tuple[float, ...]
    kinds: tuple[str, ...]
    scale: tuple[float, float]
    coefficients: Array
    covariance: Array
    error: float

    def predict(
        self, eta: float, share: float, tokens: float, kind: str = ""
    ) -> tuple[float, float]:
        """Return the loss and its standard error, nats per token.

        Arguments are those of a `Seen` measurement.
        """
        row = _row(eta, share, tokens, kind, self.exponents, self.kinds, self.scale)
        spread = float(row @ self.covariance @ row)
        return float(row @ self.coefficients), self.error * (1 + spread) ** 0.5


@dataclass(frozen=True)
class Fit:
    """A law, and its prediction of every measurement whose trial was left out, in their order."""

    law: Law
    held_out: tuple[float, ...]


def fit(seen: Sequence[Seen]) -> Fit:
    """Return the law that predicts left-out trials best.

    Raises:
        ValueError: there are fewer than five trials.
    """
    trials = np.array([row.trial for row in seen])
    if len(set(trials.tolist())) < LEAST_TRIALS:
        raise ValueError(f"a law needs {LEAST_TRIALS} trials, not {len(set(trials.tolist()))}")
    losses = np.array([row.loss for row in seen])
    kinds = tuple(dict.fromkeys(row.kind for row in seen))
    scale = (
        float(np.exp(np.mean([np.log(row.eta) for row in seen]))),
        float(max(row.tokens for row in seen)),
    )
    groups = [trials == trial for trial in dict.fromkeys(trials.tolist())]
    best: tuple[float, tuple[float, ...], float, Array] | None = None
    one_budget = len({row.tokens for row in seen}) == 1
    for exponents in _EXPONENTS:
        if one_budget and exponents[1] != _EXPONENTS[0][1]:
            continue  # with one budget, the exponent of tokens changes nothing
        rows = _rows(seen, exponents, kinds, scale)
        for ridge in _RIDGES:
            held_out = _left_out(rows, losses, groups, ridge)
            error = float(np.sqrt(np.mean((held_out - losses) ** 2)))
            if best is None or error < best[0]:
                best = error, exponents, ridge, held_out
    assert best is not None
    error, exponents, ridge, held_out = best
    rows = _rows(seen, exponents, kinds, scale)
    inverse = np.linalg.inv(_normal(rows, ridge)).astype(np.float64)
    coefficients: Array = inverse @ rows.T @ losses
    law = Law(exponents, kinds, scale, coefficients, inverse, error)
    return Fit(law, tuple(float(loss) for loss in held_out))


def _rows(
    seen: Sequence[Seen],
    exponents: Sequence[float],
    kinds: Sequence[str],
    scale: tuple[float, float],
) -> Array:
    """Return the law's terms of every measurement `(measurements, terms)`."""
    return np.array([_row(s.eta, s.share, s.tokens, s.kind, exponents, kinds, scale) for s in seen])


def _left_out(rows: Array, losses: Array, groups: Sequence[Array], ridge: float) -> Array:
    """Return the prediction of every group by the fit without it."""
    normal, moment = _normal(rows, ridge), rows.T @ losses
    predicted = np.empty_like(losses)
    for group in groups:
        mine = rows[group]
        rest = np.linalg.solve(normal - mine.T @ mine, moment - mine.T @ losses[group])
        predicted[group] = mine @ rest
    return predicted


def _normal(rows: Array, ridge: float) -> Array:
    """Return the normal equations; all but the level is drawn towards zero."""
    penalty = np.full(rows.shape[1], ridge * len(rows))
    penalty[0] = 1e-9
    normal: Array = rows.T @ rows + np.diag(penalty)
    return normal


def _row(
    eta: float,
    share: float,
    tokens: float,
    kind: str,
    exponents: Sequence[float],
    kinds: Sequence[str],
    scale: tuple[float, float],
) -> Array:
    """Return the terms of the law: E, B, C, the parabola, its product with C, and the levels."""
    power, by_tokens, offset, decay = exponents
    x = float(np.log(eta / scale[0]))
    lack = (offset / (share + offset)) ** decay
    learned = share**power * (scale[1] / tokens) ** by_tokens
    levels = [float(kind == other) for other in kinds[1:]]
    return np.array([1.0, learned, lack, x, x * x, x * lack, *levels])
