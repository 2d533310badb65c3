"""Checks of releases: an average is what it says, and an alias points where gates hold."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from perennial.audit.checks import FoldedLedger, PlannedFolder, ledger_key
from perennial.audit.finding import Finding, unequal, unequal_tokens
from perennial.errors import Altered, Damaged, InputError
from perennial.runs.averaging import Average, weights_of
from perennial.runs.events import Promoted, Releasing
from perennial.runs.release_policy import alias_key, alias_object, failing_gates
from perennial.store import Store
from perennial.training.checkpoint.manifest import (
    CheckpointManifest,
    FileEntry,
    digest,
    folder_of,
)
from perennial.training.model.average import write_average
from perennial.training.model.tensor_chunks import is_weights


def check_averages(story: FoldedLedger) -> Iterator[Finding]:
    """Check that each average in the ledger is of steps of the trunk, weighed as it says."""
    for branch in story.state.branches.values():
        average = branch.average
        if average is None:
            continue
        key = story.key("releasing", name=branch.name)
        last = story.state.stage(branch.stage)
        trunk = {stage.name: stage for stage in (*story.state.lineage(last), last)}
        for member in average.of:
            stage = trunk.get(member.stage)
            if stage is None or not stage.first_step < member.step <= stage.last_step:
                problem = f"{branch.name} is an average of {member.stage} step {member.step}"
                yield Finding(key, problem, "steps of the trunk that it branches off")
            elif member.source != folder_of(stage.folder, member.step):
                problem = f"step {member.step} of {branch.name} is {member.source}"
                yield Finding(key, problem, folder_of(stage.folder, member.step))
        steps = [member.step for member in average.of]
        weights = [member.weight for member in average.of]
        yield from unequal(
            key,
            {
                f"steps of {branch.name}": (steps, sorted(set(steps))),
                f"last step of {branch.name}": (steps[-1:], [branch.step]),
                f"weights of {branch.name}": (weights, weights_of(average.weighting, len(steps))),
            },
        )


def check_averaged_files(
    store: Store,
    where: str,
    branch: Releasing,
    manifest: Mapping[str, Any],
    files: Mapping[str, FileEntry],
    checkpoints: Mapping[str, CheckpointManifest],
    plan: PlannedFolder | None,
) -> Iterator[Finding]:
    """Check a release that is an average: what it says of itself, and its weights, made again.

    They are not made again where retention has removed one of the checkpoints, or one is damaged.

    Args:
        store: the run's store.
        where: key of the release's manifest.
        branch: the release as it was planned, with its average.
        manifest: of the release; files: those in it.
        checkpoints: manifests of all checkpoints that are committed, by key.
        plan: of the stage that it branches off.
    """
    average = branch.average
    assert average is not None
    said, right = manifest.get("average"), average.sources
    pairs = {"average": (said, right), "checkpoint": (manifest["checkpoint"], branch.source)}
    if plan is not None and plan.first_step < branch.step <= plan.last_step:
        stated = (manifest["tokens_seen"], manifest.get("tokens_elsewhere", 0))
        yield from unequal_tokens(where, stated, plan.stated_tokens(branch.step, stated[0]))
    yield from unequal(where, pairs)
    if said == right and all(source in checkpoints for source in right):
        yield from _again(store, where, average, files)


def _again(
    store: Store, where: str, average: Average, files: Mapping[str, FileEntry]
) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory(prefix="perennial-") as scratch:
        try:
            write_average(store, average.sources, Path(scratch))
        except (Altered, Damaged, InputError):
            return  # the checkpoint has a finding of its own
        made = {path.name: digest(path) for path in Path(scratch).iterdir()}
    its = {name: entry.sha256 for name, entry in files.items() if is_weights(name)}
    for name in sorted({*made, *its}):
        yield from unequal(where, {f"sha256 of {name}": (its.get(name), made.get(name))})


def check_promotions(store: Store, story: FoldedLedger) -> Iterator[Finding]:
    """Check every alias that was ever moved, and the object of each.

    Args:
        store: the run's store.
        story: the folded ledger.
    """
    state = story.state
    for number, event in enumerate(story.events):
        if not isinstance(event, Promoted) or event.release not in state.branches:
            continue  # a fork left it behind
        if problem := failing_gates(state, event.release):
            right = "an alias points to a release whose gates hold"
            yield Finding(ledger_key(number), f"{event.alias} is {event.release}: {problem}", right)
    made = {release.name: release for release in state.releases}
    for alias, pointed in state.aliases.items():
        key, says = alias_key(alias), alias_object(made[pointed[-1]], alias)
        remedy = f"the ledger says {pointed[-1]}; `perennial promote` it again"
        try:
            if store.read(key) != says:
                yield Finding(key, "says something else than the ledger", remedy)
        except FileNotFoundError:
            yield Finding(key, "is missing", remedy)
