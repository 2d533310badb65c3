"""Landing files, and tokenising what landed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from perennial import corpora
from perennial.api.results import IngestSummary, LandedFiles
from perennial.controller.before_compute import (
    check_before_compute,
    check_size,
    check_tokens,
)
from perennial.controller.ingest_stage import settings_of
from perennial.controller.loop import ingest_landed, todo_ingest
from perennial.controller.source_poller import open_sources, pull_due, utc_now
from perennial.corpora.sample import check_sample
from perennial.errors import InputError
from perennial.sources.places import PlacedFiles, find_files
from perennial.store import shown_transfer

if TYPE_CHECKING:
    from perennial.audit.repair import Repair
    from perennial.audit.retraining import Retraining
    from perennial.audit.upgrade import StackComparison
    from perennial.controller.context import Workspace
    from perennial.training.job import Job


def land(work: Workspace, name: str, places: Sequence[str], splits: Sequence[str]) -> LandedFiles:
    """Copy files to the inbox as corpus `name`; see `Run.land`."""
    placed = _find_files(work, name, places, splits)
    work.inbox.check()
    total = sum(file.size_bytes for file in placed.files)
    with shown_transfer(f"landing {name}", total, work.log):
        keys = tuple(corpora.land_files(work.inbox, name, placed.files))
    if not work.spec.inbox:
        _check_stayed(work)
    left_out = {file.name: file.reason for file in placed.left_out}
    return LandedFiles(name, work.inbox.url, keys, left_out)


def _check_stayed(work: Workspace) -> None:
    """Raise InputError where the run moved while files landed, and left them behind."""
    try:
        work.ledger.read()
    except InputError as refused:
        if refused.code == "store-moved":
            raise


def plan_land(
    work: Workspace, name: str, places: Sequence[str], splits: Sequence[str]
) -> list[str]:
    """Return the copies that `land` would make, and what it would leave out."""
    placed = _find_files(work, name, places, splits)
    target = f"{work.inbox.url}/{name}"
    copies = [f"upload {file.origin} to {target}" for file in placed.files]
    return copies + [f"leave out {file.name}: {file.reason}" for file in placed.left_out]


def _find_files(
    work: Workspace, name: str, places: Sequence[str], splits: Sequence[str]
) -> PlacedFiles:
    corpora.check_name(name)
    are_ids = work.spec.corpora.tokens_of(name) is not None
    placed = find_files(places, splits, are_ids)
    corpora.check_files(placed.files)
    check_size(work, name, placed.files)
    check_before_compute(work, name)
    if not are_ids:
        settings = settings_of(work, name)
        check_sample(name, placed.files, settings)
        check_tokens(work, name, placed.files, settings)
    return placed


def ingest(work: Workspace, *, due: bool) -> IngestSummary:
    """Tokenise what has landed; see `Run.ingest`."""
    _check_due(work, due)
    sources = open_sources(work)
    landed = pull_due(work, sources, utc_now()) if due else []
    before = _refused(work)
    ingest_landed(work, wait=not due)  # a cron comes again
    corpora = work.state.corpora.values()
    return IngestSummary(
        landed=landed,
        corpora={
            corpus.name: "nothing new" if corpus.holds_nothing_new else corpus.state
            for corpus in corpora
        },
        reasons={corpus.name: corpus.reason for corpus in corpora if corpus.reason},
        sources=[source.status(utc_now()) for source in sources],
        refused=sorted(_refused(work) - before),
    )


def _refused(work: Workspace) -> set[str]:
    return {name for name, corpus in work.state.corpora.items() if corpus.state == "refused"}


def plan_ingest(work: Workspace, *, due: bool) -> list[str]:
    """Return the pulls and the corpora that `ingest` would tokenise."""
    _check_due(work, due)
    statuses = [source.status(utc_now()) for source in open_sources(work)] if due else []
    return [
        *(f"pull {status.name} at {status.next_due}" for status in statuses),
        *todo_ingest(work),
    ]


def repair(
    store: str, copy: str | None, *, acts: bool = True, retraining: Retraining | None = None
) -> Repair:
    """Mend a store from a copy, and by training; see `Run.repair`."""
    from perennial.audit import repair as audit
    from perennial.store import open_run_store, open_store

    lender = None if copy is None else open_store(copy)
    return audit.repair(open_run_store(store), lender, acts=acts, retraining=retraining)


def retraining_of(work: Workspace) -> Retraining:
    """Return what trains damaged checkpoints of a run again; starts nothing."""
    from perennial.audit.retraining import Retraining

    return Retraining(work.store, work.spec, lambda job: _train_again(work, job))


def upgrade(work: Workspace) -> StackComparison:
    """Compare the installed software with what was recorded; see `Run.upgrade`."""
    from perennial.audit.upgrade import compare_stacks

    return compare_stacks(work.store, work.spec, lambda job: _train_again(work, job))


def plan_upgrade(work: Workspace) -> list[str]:
    """Return the steps that `upgrade` would take, and under which software, in words."""
    from perennial.audit.upgrade import plan_upgrade as plan
    from perennial.training.stack import describe_changes, find_versions

    stretch = plan(work.store, work.spec)
    recorded = stretch.recorded
    # Which processor the workers have, they alone know.
    known = {name: recorded.stack[name] for name in find_versions() if name in recorded.stack}
    changes = describe_changes(known, find_versions())
    length = "1 step" if stretch.steps == 1 else f"{stretch.steps:,} steps"
    source = stretch.source or "the run's beginning"
    group = "1 worker" if recorded.world_size == 1 else f"{recorded.world_size} workers"
    return [
        f"take {length} from {source} to {stretch.checkpoint} once more, on {group}",
        f"compare {', '.join(changes) or 'the same versions'}"
        if known
        else "compare versions that were not recorded with those that are installed",
    ]


def _train_again(work: Workspace, job: Job) -> None:
    """Train a job whose folder is its own, in workers that wait for the next one."""
    from perennial.controller.ray_cluster import use_ray
    from perennial.controller.train_stage import train_trunk

    work.check_run()
    use_ray(job.training)
    train_trunk(work, job)


def _check_due(work: Workspace, due: bool) -> None:
    if due and not work.spec.sources:
        raise InputError(
            work.where, "sources", "there is none to pull", "name one, or leave out --due",
            code="no-sources",
        )  # fmt: skip
