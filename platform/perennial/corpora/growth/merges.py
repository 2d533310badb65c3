"""Continued merges of a byte-level BPE, learned greedily over counted words. Pure.

A merge that is learned has a lower priority than all merges before it. So the tokenizer first does
what it did before, and every further merge takes one token away: no text takes more tokens.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Word = tuple[str, ...]
"""the pieces that the tokenizer makes of a word, in the characters of its vocabulary"""
Pair = tuple[str, str]


@dataclass(frozen=True)
class LearnedEntry:
    """A new entry: its text in the vocabulary's characters, and the merges that lead to it.

    The first merge is the one that was found; the others join the same text from other pieces, so
    that one spelling is one entry wherever in a word it stands.
    """

    text: str
    merges: tuple[Pair, ...]


class MergeLearner:
    """The pieces of counted words while merges are learned over them.

    Each pair of neighbours is indexed by the words that hold it, so a merge costs what it changes.

    Args:
        words: how often each word occurs, by its pieces.
        vocabulary: entries so far; none of them is learned again.
    """

    def __init__(self, words: Mapping[Word, int], vocabulary: Iterable[str]) -> None:
        self._pieces = [list(word) for word in words]
        self._times = list(words.values())
        self._known = set(vocabulary)
        self._counts: defaultdict[Pair, int] = defaultdict(int)
        self._holders: defaultdict[Pair, set[int]] = defaultdict(set)
        for number in range(len(self._pieces)):
            self._index(number)
        self._heap = [(-count, *pair) for pair, count in self._counts.items()]
        heapq.heapify(self._heap)

    def learn(self, most: int | None, fewest: int) -> Iterator[LearnedEntry]:
        """Yield entries by falling count of their pair; of equal counts the first in the alphabet.

        Args:
            most: entries to learn; None for all.
            fewest: occurrences below which a pair is not worth an entry.
        """
        learned = 0
        while learned != most and (pair := self._pop(fewest)) is not None:
            text = "".join(pair)
            others = (split for split in _splits(text, self._known) if split != pair)
            self._known.add(text)
            merges = (pair, *others)
            for merge in merges:
                self._merge(merge, text)
            learned += 1
            yield LearnedEntry(text, merges)

    def segmented(self) -> dict[Word, int]:
        """Return how often each word occurs, by its pieces as they are now."""
        words: defaultdict[Word, int] = defaultdict(int)
        for pieces, times in zip(self._pieces, self._times, strict=True):
            words[tuple(pieces)] += times
        return dict(words)

    def _pop(self, fewest: int) -> Pair | None:
        """Return the pair that occurs the most and is no entry yet; None when none is left."""
        while self._heap:
            stale, left, right = heapq.heappop(self._heap)
            count = self._counts.get((left, right), 0)
            if count < fewest or left + right in self._known:
                continue
            if -stale == count:
                return left, right
            # Counts only fall for a pair that is in the heap: one that rose was pushed again.
            if count < -stale:
                heapq.heappush(self._heap, (-count, left, right))
        return None

    def _merge(self, pair: Pair, text: str) -> None:
        """Join a pair wherever it occurs, from the left."""
        touched: set[Pair] = set()
        for number in sorted(self._holders.get(pair, ())):
            self._unindex(number)
            self._pieces[number] = _join(self._pieces[number], pair, text)
            touched |= self._index(number)
        for changed in touched:
            if text in changed:
                heapq.heappush(self._heap, (-self._counts[changed], *changed))

    def _index(self, number: int) -> set[Pair]:
        pairs = list(pairwise(self._pieces[number]))
        for pair in pairs:
            self._counts[pair] += self._times[number]
            self._holders[pair].add(number)
        return set(pairs)

    def _unindex(self, number: int) -> None:
        for pair in pairwise(self._pieces[number]):
            self._counts[pair] -= self._times[number]
            self._holders[pair].discard(number)


def _join(pieces: Sequence[str], pair: Pair, text: str) -> list[str]:
    joined: list[str] = []
    at = 0
    while at < len(pieces):
        if at + 1 < len(pieces) and (pieces[at], pieces[at + 1]) == pair:
            joined.append(text)
            at += 2
        else:
            joined.append(pieces[at])
            at += 1
    return joined


def _splits(text: str, known: set[str]) -> Iterator[Pair]:
    """Yield the ways to make a text of two known entries."""
    for at in range(1, len(text)):
        if text[:at] in known and text[at:] in known:
            yield text[:at], text[at:]
