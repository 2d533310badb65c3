"""Plan how a damaged ledger can be mended from what is there and from a copy. Pure.

An entry's digest proves every entry before it, since each carries the digest of its predecessor.
What names digests from outside of the ledger, the head and the checkpoints, proves a whole ledger
up to there. Nothing that one of them contradicts is taken, kept as the end, or written.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from perennial.audit.checks import check_run_file, ledger_key
from perennial.audit.finding import Finding
from perennial.errors import InvalidTransition
from perennial.runs.event_codec import LedgerEntry, decode
from perennial.runs.ledger import HEAD, Head, check_follows, digest_of
from perennial.runs.state import RunState

_WRONG = (InvalidTransition, ValueError, LookupError, TypeError, AttributeError, StopIteration)


@dataclass(frozen=True)
class LedgerEvidence:
    """The entries of a ledger, and what names them.

    entries: by number.
    head: its end, as the store remembers it.
    named: digests by which checkpoints name entries, by number.
    """

    entries: Mapping[int, bytes] = field(default_factory=dict)
    head: Head = field(default_factory=Head)
    named: Mapping[int, Collection[str]] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """Return the number behind the last entry that is there."""
        return max(self.entries, default=-1) + 1

    @property
    def is_whole(self) -> bool:
        """Return whether no entry is missing up to the head, and the head names the last one."""
        last = self.entries.get(self.end - 1)
        return (
            last is not None
            and len(self.entries) == self.end
            and self.head == Head(self.end, digest_of(last))
        )


@dataclass
class LedgerPlan:
    """A plan of changes to a ledger.

    restore: entries to write, by number; an object that is there is set aside first.
    set_aside: numbers of entries that belong to no ledger, or to another one.
    head: the end that it has then.
    lost: why it ends before its end, if it does.
    is_of_this_run: whether the copy has an entry that this ledger has, or names.
    """

    restore: dict[int, bytes] = field(default_factory=dict)
    set_aside: list[int] = field(default_factory=list)
    head: Head = field(default_factory=Head)
    lost: Finding | None = None
    is_of_this_run: bool = False

    def wrong_head(self, own: LedgerEvidence) -> str:
        """Return what is wrong about the head that is there, "" where it is right or behind."""
        head = own.head
        is_absent = head == Head()
        if self.lost is not None or is_absent or head == self.head:
            return ""
        data = self.restore.get(head.events - 1, own.entries.get(head.events - 1))
        if head.events <= self.head.events and data and digest_of(data) == head.sha256:
            return ""
        return (
            f"{HEAD}: named {head.events} entries, the last {head.sha256[:12]}, which no ledger "
            f"of this run has; it names {self.head.events} now, the last {self.head.sha256[:12]}"
        )


def plan_ledger(own: LedgerEvidence, copy: LedgerEvidence) -> LedgerPlan:
    """Plan the repair of a ledger, entry by entry from the first.

    An entry of the copy is taken where the own one is missing or wrong and the copy's digest is
    named: by the head, a checkpoint, or the entry behind it. What follows nothing is set aside at
    the end of the ledger alone, and where nothing says that an entry was there.

    Args:
        own: the ledger.
        copy: that of a copy of the store; empty without one.
    """
    candidates = _Candidates(own, copy)
    proved, hinted = _prove(own, copy, candidates)
    plan, state, chained = LedgerPlan(), RunState(), False
    plan.is_of_this_run = any(
        own.entries.get(number) == data
        or digest_of(data) in (proved.get(number), hinted.get(number))
        for number, data in copy.entries.items()
    )
    end = max([own.end - 1, *proved], default=-1) + 1
    if own.end < end and own.head.events != end:
        end = max(end, copy.end)  # the end is lost, and the head with it: the copy's is the end
    for number in range(end):
        follow = [
            (data, entry)
            for data in candidates.at(number)
            if (entry := _following(data, plan.head, chained, state))
        ]
        chosen = _choose(follow, number, own, proved.get(number), hinted.get(number))
        if chosen is None and number > max([own.end - 1, *proved], default=-1):
            break  # the copy's end, as far as it follows
        if chosen is None:
            rest = [late for late in sorted(own.entries) if late >= number]
            if rest and number > max(proved, default=-1) and _is_loose(rest, plan.head, own, copy):
                plan.set_aside = rest
            else:
                there = number in own.entries
                plan.lost = _lost(number, end, is_there=there, has_copy=bool(copy.entries))
            break
        data, entry = chosen
        if data != own.entries.get(number):
            plan.restore[number] = data
        state.apply(entry.event)
        plan.head = Head(number + 1, digest_of(data))
        chained = entry.before is not None
    return plan


class _Candidates:
    """The own entry and the copy's of each number."""

    def __init__(self, own: LedgerEvidence, copy: LedgerEvidence) -> None:
        self._entries = (own.entries, copy.entries)

    def at(self, number: int) -> list[bytes]:
        """Return those of a number, the own one first."""
        return [entries[number] for entries in self._entries if number in entries]

    def walk_back(self, number: int, digest: str, known: dict[int, str]) -> bool:
        """Note the digests of the entries that lead to one; return whether that one is there.

        Args:
            number: of the entry.
            digest: of the entry.
            known: gets the digests by number; what it has is not changed.
        """
        is_there = any(digest_of(data) == digest for data in self.at(number))
        before: str | None = digest
        while number >= 0 and before and number not in known:
            known[number] = before
            data = next((data for data in self.at(number) if digest_of(data) == before), None)
            before, number = None if data is None else _before(data), number - 1
        return is_there


def _prove(
    own: LedgerEvidence, copy: LedgerEvidence, candidates: _Candidates
) -> tuple[dict[int, str], dict[int, str]]:
    """Return the digests that are proved from outside of the ledger, and those by later entries.

    The first are right where what names them is; of the second those at the end may be named by
    an entry that is itself wrong.
    """
    proved: dict[int, str] = {}
    lost: dict[int, str] = {}
    for number in sorted(own.named, reverse=True):
        for digest in own.named[number]:
            if any(digest_of(data) == digest for data in candidates.at(number)):
                candidates.walk_back(number, digest, proved)
            else:
                lost[number] = digest
    last, digest = own.head.events - 1, own.head.sha256
    if last >= 0 and last not in proved and not _is_wrong_head(own, copy, candidates):
        candidates.walk_back(last, digest, proved)
    for number in sorted(lost, reverse=True):
        proved.setdefault(number, lost[number])
    hinted: dict[int, str] = {}
    for number in sorted(own.entries, reverse=True):
        candidates.walk_back(number - 1, _before(own.entries[number]) or "", hinted)
    return proved, hinted


def _is_wrong_head(own: LedgerEvidence, copy: LedgerEvidence, candidates: _Candidates) -> bool:
    """Return whether the head names what cannot be an entry of this ledger.

    An entry that is in neither ledger may be lost. It is none where the entry of that number is
    named by the one behind it, where its digest is another entry's, and where a copy that is whole
    ends with the same entry as the ledger.
    """
    last, digest = own.head.events - 1, own.head.sha256
    if not own.head.is_possible:
        return True
    if any(digest_of(data) == digest for data in candidates.at(last)):
        return False
    if digest in map(digest_of, own.entries.values()):
        return True
    if last in own.entries:
        later = own.entries.get(last + 1)
        return later is not None and _before(later) == digest_of(own.entries[last])
    return copy.is_whole and copy.entries[copy.end - 1] == own.entries.get(copy.end - 1)


def _choose(
    follow: list[tuple[bytes, LedgerEntry]],
    number: int,
    own: LedgerEvidence,
    proved: str | None,
    hinted: str | None,
) -> tuple[bytes, LedgerEntry] | None:
    """Return the entry that belongs at a number, out of those that can follow."""
    right = proved or hinted
    for data, entry in follow:
        if digest_of(data) == right:
            return data, entry
    if proved is not None:
        return None
    for data, entry in follow:
        is_own = data == own.entries.get(number)
        # Entries of older versions are named by nothing: where there is none, the copy's is taken.
        is_absent = number not in own.entries or not _is_entry(own.entries[number])
        is_unnamed = entry.before is None and hinted is None and is_absent
        # Behind the own end there is nothing that could name it; the one before it was named.
        if is_own or is_unnamed or (number >= own.end and entry.before is not None):
            return data, entry
    return None


def _is_loose(rest: list[int], end: Head, own: LedgerEvidence, copy: LedgerEvidence) -> bool:
    """Return whether entries that follow nothing can be set aside, since nothing rests on them.

    Args:
        rest: their numbers, all that there are behind the end.
        end: of the entries that follow each other.
        own: the ledger.
        copy: that of a copy.
    """
    if not end.events:
        return False
    good = {digest_of(own.entries[n]) for n in range(end.events) if n in own.entries}
    repeated = {"", *good} - {end.sha256}
    if all(
        digest_of(own.entries[number]) in good or _before(own.entries[number]) in repeated
        for number in rest
    ):
        return True
    if len(rest) > 1:
        return False  # the first may be what the second followed, altered
    is_torn = not _is_entry(own.entries[rest[0]])
    if end == own.head and (rest[0] == end.events or is_torn):
        return True
    if copy.is_whole and copy.head == end and own.head == end:
        return True
    return is_torn and rest[0] == end.events


def _is_entry(data: bytes) -> bool:
    try:
        decode(data)
    except ValueError:
        return False
    return True


def _before(data: bytes) -> str | None:
    try:
        return decode(data).before
    except ValueError:
        return None


def _following(data: bytes, head: Head, chained: bool, state: RunState) -> LedgerEntry | None:
    try:
        entry = decode(data)
        check_follows(entry.before, head, chained)
        check_run_file(entry.event)
        state.check(entry.event)
    except _WRONG:
        return None
    return entry


def _lost(number: int, end: int, *, is_there: bool, has_copy: bool) -> Finding:
    what = f"is not the entry that was written, or {HEAD} is wrong" if is_there else "is lost"
    where = "the copy has no entry that fits" if has_copy else "there is no copy to take it from"
    return Finding(
        ledger_key(number),
        f"{what}, entries up to {ledger_key(end - 1)} were written, and {where}",
        "name a copy of the store with --from",
    )
