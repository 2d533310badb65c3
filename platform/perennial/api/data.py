"""Landing files, and tokenising what landed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perennial import corpora
from perennial.api.results import IngestSummary, LandedFiles
from perennial.controller.ingest_stage import check_size
from perennial.controller.loop import ingest_landed, todo, unfinished
from perennial.controller.source_poller import open_sources, pull_due, utc_now
from perennial.errors import InputError

if TYPE_CHECKING:
    from perennial.audit.repair import Repair
    from perennial.controller.context import Workspace


def land(work: Workspace, name: str, files: Sequence[Path]) -> LandedFiles:
    """Upload files to the inbox as corpus `name`; see `Run.land`."""
    _check_files(work, name, files)
    work.inbox.check()
    return LandedFiles(name, work.inbox.url, tuple(corpora.land(work.inbox, name, list(files))))


def plan_land(work: Workspace, name: str, files: Sequence[Path]) -> list[str]:
    """Return the uploads that `land` would do."""
    _check_files(work, name, files)
    return [f"upload {path} to {work.inbox.url}/{name}" for path in files]


def _check_files(work: Workspace, name: str, files: Sequence[Path]) -> None:
    corpora.check_name(name)
    corpora.check_files(list(files))
    check_size(work, name, sum(path.stat().st_size for path in files))


def ingest(work: Workspace, *, due: bool) -> IngestSummary:
    """Tokenise what has landed; see `Run.ingest`."""
    _check_due(work, due)
    sources = open_sources(work)
    landed = pull_due(work, sources, utc_now()) if due else []
    # A cron's `--due` must not fail while a stage trains: its controller tokenises what landed.
    busy = unfinished(work) if due else None
    if busy is None:
        ingest_landed(work)
    return IngestSummary(
        landed=landed,
        corpora={
            name: "nothing new" if corpus.holds_nothing_new else corpus.state
            for name, corpus in work.state.corpora.items()
        },
        sources=[source.status(utc_now()) for source in sources],
        unfinished=busy,
    )


def plan_ingest(work: Workspace, *, due: bool) -> list[str]:
    """Return the pulls and the first action that `ingest` would do."""
    _check_due(work, due)
    statuses = [source.status(utc_now()) for source in open_sources(work)] if due else []
    return [*(f"pull {status.name} at {status.next_due}" for status in statuses), *todo(work)]


def repair(store: str, copy: str | None, *, acts: bool = True) -> Repair:
    """Mend a store from a copy; see `Run.repair`."""
    from perennial.audit import repair as audit
    from perennial.store import open_store

    lender = None if copy is None else open_store(copy)
    return audit.repair(open_store(store), lender, acts=acts)


def _check_due(work: Workspace, due: bool) -> None:
    if due and not work.spec.sources:
        raise InputError(
            work.where, "sources", "there is none to pull", "name one, or leave out --due",
            code="no-sources",
        )  # fmt: skip
