"""Plan how a damaged ledger can be mended from what is there and from a copy. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count

from perennial.audit.checks import ledger_key
from perennial.audit.finding import Finding
from perennial.errors import InvalidTransition
from perennial.runs.events import LedgerEntry, decode
from perennial.runs.ledger import Head, check_follows, digest_of
from perennial.runs.state import RunState

_WRONG = (InvalidTransition, ValueError, LookupError, TypeError, AttributeError, StopIteration)


@dataclass
class LedgerPlan:
    """A plan of changes to a ledger.

    restore: entries to write, by number; an object that is there is set aside first.
    set_aside: numbers of entries that belong to no ledger, or to another one.
    head: the end that it has then.
    lost: why it ends before its end, if it does.
    """

    restore: dict[int, bytes] = field(default_factory=dict)
    set_aside: list[int] = field(default_factory=list)
    head: Head = field(default_factory=Head)
    lost: Finding | None = None


def plan_ledger(mine: Mapping[int, bytes], copy: Mapping[int, bytes], head: Head) -> LedgerPlan:
    """Plan the repair of a ledger, entry by entry from the first.

    An entry of the copy is taken where the own one is missing or wrong, and the entry behind it or
    the head names the copy's digest, or the copy's follows where none is named. What does not
    follow is set aside where it is the last entry, or behind the head: nothing rests on it.

    Args:
        mine: entries by number.
        copy: entries of a copy of the store by number.
        head: the end of the ledger, as the store remembers it.
    """
    plan, state, chained = LedgerPlan(), RunState(), False
    end = max([*mine, head.events - 1], default=-1) + 1
    for number in count():
        if number >= end:
            return plan
        wanted = _wanted(mine, number, head)
        follow = [
            (data, entry)
            for data in (mine.get(number), copy.get(number))
            if data is not None and (entry := _following(data, plan.head, chained, state))
        ]
        chosen = next(((d, e) for d, e in follow if digest_of(d) == wanted), None) or next(
            iter(follow), None
        )
        if chosen is None:
            if number in mine and (number == end - 1 or 0 < head.events <= number):
                plan.set_aside = [late for late in sorted(mine) if late >= number]
            else:
                plan.lost = _lost(number, end, is_there=number in mine, has_copy=bool(copy))
            return plan
        data, entry = chosen
        if data != mine.get(number):
            plan.restore[number] = data
        state.apply(entry.event)
        plan.head = Head(number + 1, digest_of(data))
        chained = entry.before is not None
    raise AssertionError("the loop returns")


def _wanted(mine: Mapping[int, bytes], number: int, head: Head) -> str | None:
    """Return the digest by which the next entry or the head names an entry, or None."""
    if number == head.events - 1:
        return head.sha256
    try:
        return decode(mine[number + 1]).before
    except (LookupError, ValueError):
        return None


def _following(data: bytes, head: Head, chained: bool, state: RunState) -> LedgerEntry | None:
    try:
        entry = decode(data)
        check_follows(entry.before, head, chained)
        state.check(entry.event)
    except _WRONG:
        return None
    return entry


def _lost(number: int, end: int, *, is_there: bool, has_copy: bool) -> Finding:
    what = "does not follow the entry before it" if is_there else "is lost"
    where = "the copy has no entry that fits" if has_copy else "there is no copy to take it from"
    return Finding(
        ledger_key(number),
        f"{what}, entries up to {ledger_key(end - 1)} were written, and {where}",
        "name a copy of the store with --from",
    )
