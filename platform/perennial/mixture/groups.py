"""Replay groups: corpora of one source or month share a part of the replay. Pure.

A pattern is the beginning of names, in which `?` stands for any one character; what it matches of a
corpus's name is the name of its group. So `news-` makes one group of all news, and `news-????-??`
one of each month.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TypeVar

from perennial.mixture.policies import CorpusHistory

KeyT = TypeVar("KeyT")


def group_of(patterns: Sequence[str], corpus: str) -> str | None:
    """Return the name of a corpus's group, by the first pattern that matches; None for none.

    Args:
        patterns: beginnings of names.
        corpus: the corpus's name; the name of a group gives that group.
    """
    for pattern in patterns:
        beginning = corpus[: len(pattern)]
        if fnmatchcase(beginning, pattern):
            return beginning
    return None


def join_histories(members: Sequence[CorpusHistory]) -> CorpusHistory:
    """Return the history of a group, which is as new as the newest of its members."""
    newest = max(member.stage for member in members)
    return replace(CorpusHistory.sum(members), stage=newest)


def fill_group(
    total: int, members: Mapping[KeyT, CorpusHistory], max_epochs: int | None = None
) -> dict[KeyT, int]:
    """Return the sequences to replay of each member of a group, one member after the other.

    In the order in which they were first trained, what was replayed fewest times comes first: a
    member from where its last replay stopped to its end, then the next, and the first one again
    when all were replayed equally often. So a stage takes few members, and needs no other memory
    than how much of each was replayed.

    Args:
        total: sequences to replay of the group.
        members: what was trained of each so far, in the order of the stages.
        max_epochs: how often any sequence may be replayed in all; None for no limit.

    Returns:
        The sequences of those members that have any; their sum is below `total` only at the limit.
    """

    def missing(epochs: int) -> int:
        return sum(max(0, its.extent * epochs - its.replayed) for its in members.values())

    rows = sum(its.extent for its in members.values())
    most = (total + sum(its.replayed for its in members.values())) // rows + 1
    whole = bisect_right(range(most + 1), total, key=missing) - 1
    if max_epochs is not None:
        whole = min(whole, max_epochs)
    counts = {key: max(0, its.extent * whole - its.replayed) for key, its in members.items()}
    left = total - sum(counts.values())
    for key, its in members.items() if whole != max_epochs else ():
        behind = its.extent * (whole + 1) - its.replayed - counts[key]
        taken = min(left, max(0, behind))
        counts[key] += taken
        left -= taken
    return {key: count for key, count in counts.items() if count}
