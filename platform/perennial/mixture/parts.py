"""The parts of a corpus, and what their weights make of a number of sequences. Pure.

A part holds the documents of one domain. Its rows follow each other in the corpus, so that a part
is a source of its own, with a share of every batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from perennial.errors import InputError
from perennial.mixture.policies import as_written
from perennial.mixture.replay import apportion

Weights = Mapping[str, float]
"""weights by part"""
CorpusRows = int | Mapping[str, int]
"""rows of a corpus, or of each of its parts"""


@dataclass(frozen=True)
class Part:
    """A part of a corpus: `rows` successive rows from row `first` on.

    weight: its share of the corpus's sequences is in proportion to it; None for its rows.
    """

    name: str
    first: int
    rows: int
    weight: float | None = None

    @property
    def is_trained(self) -> bool:
        """Return whether the part has rows, and no weight of 0."""
        return self.rows > 0 and self.weight != 0


def weigh_parts(corpus: str, rows: Mapping[str, int], weights: Weights) -> tuple[Part, ...]:
    """Return the parts of a corpus with their weights.

    Args:
        corpus: its name, for the message.
        rows: the rows of each part, in their order in the corpus.
        weights: by part; without any, parts have shares by their rows.

    Raises:
        InputError: a part with rows has no weight, no part has the name, or nothing is left.
    """
    parts, first = [], 0
    for name, count in rows.items():
        parts.append(Part(name, first, count, weights.get(name, 0.0) if weights else None))
        first += count
    if weights:
        _check(corpus, rows, weights)
    return tuple(parts)


def list_new(
    names: Iterable[str], rows: Mapping[str, CorpusRows], weights: Mapping[str, Weights]
) -> dict[str, int | Sequence[Part]]:
    """Return the rows of new corpora, or their weighted parts, as `stage_mix` takes them.

    Args:
        names: of the corpora.
        rows: of all corpora, or of their parts.
        weights: of parts, by corpus; none for a corpus whose parts have none.

    Raises:
        InputError: weights do not fit the parts.
    """
    new: dict[str, int | Sequence[Part]] = {}
    for name in names:
        its, given = rows[name], weights.get(name, {})
        new[name] = (
            its
            if isinstance(its, int) and not given
            else weigh_parts(name, {} if isinstance(its, int) else its, given)
        )
    return new


def _check(corpus: str, rows: Mapping[str, int], weights: Weights) -> None:
    field, names = f"stages.corpora.{corpus}.weights", {n for n, count in rows.items() if count}
    strange, absent = [*sorted({*weights} - {*rows})], [*sorted(names - {*weights})]
    if not rows:
        problem = "it has no parts"
        remedy = "set corpora.parts: domain before a corpus is ingested, or leave the weights out"
    elif strange or absent:
        problem = (
            f"it has no part {strange[0]!r}" if strange else f"its part {absent[0]!r} has no weight"
        )
        total = sum(rows.values())
        shares = ", ".join(f"{name!r}: {rows[name] / total:.4f}" for name in sorted(names))
        remedy = f"give every part a number, 0 to leave it out; without weights it is {{{shares}}}"
    elif not any(weights[name] for name in names):
        problem = "every part that has a row has the weight 0"
        remedy = "give a part a number above 0"
    else:
        return
    raise InputError("run file", field, problem, remedy, code="weights-of-parts")


def name_source(corpus: str, part: str | None) -> str:
    """Return the name of a corpus, or of a part of it, as it is shown."""
    return corpus if part is None else f"{corpus}[{part or 'no domain'}]"


def rows_of(corpus: int | Sequence[Part]) -> int:
    """Return the rows of a corpus that are trained: all of them, or those of the trained parts."""
    if isinstance(corpus, int):
        return corpus
    return sum(part.rows for part in corpus if part.is_trained)


def apportion_parts(total: int, parts: Sequence[Part]) -> list[tuple[Part, int]]:
    """Return the trained parts with their sequences, which add up to `total`.

    Args:
        total: sequences of the corpus.
        parts: all parts of it.
    """
    trained = [part for part in parts if part.is_trained]
    exact = [as_written(p.rows if p.weight is None else p.weight) for p in trained]
    whole = whole_numbers(exact)
    counts = apportion(total, {p.name: n for p, n in zip(trained, whole, strict=True)})
    return [(part, counts[part.name]) for part in trained]


def weights_of(new: Mapping[str, int | Sequence[Part]]) -> dict[str, Weights]:
    """Return the weights of the corpora for which there are any, by corpus and part."""
    given = {
        name: {part.name: part.weight for part in parts if part.weight is not None}
        for name, parts in new.items()
        if not isinstance(parts, int)
    }
    return {name: weights for name, weights in given.items() if weights}


def whole_numbers(exact: Iterable[Fraction]) -> list[int]:
    """Return whole numbers in the same proportion, so that a plan is equal on every machine."""
    numbers = list(exact)
    scale = math.lcm(*(number.denominator for number in numbers))
    return [int(number * scale) for number in numbers]
