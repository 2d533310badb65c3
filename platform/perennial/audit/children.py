"""Checks of the children of Inheritune searches: what they are trained on, and began with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from perennial.audit.finding import Finding, field_of
from perennial.config.search import Child
from perennial.errors import Damaged
from perennial.runs.search_state import child_mix, start_key
from perennial.training.checkpoint.manifest import MANIFEST, FileEntry, read_manifest

if TYPE_CHECKING:
    from perennial.mixture import StageMix
    from perennial.runs.events import Branched
    from perennial.runs.state import RunState
    from perennial.store import Store


@dataclass
class ChildStarts:
    """Beginnings of the children of all searches: findings, and the files to read by key."""

    findings: list[Finding] = field(default_factory=list)
    files: dict[str, FileEntry] = field(default_factory=dict)


def right_mix(state: RunState, branched: Branched) -> StageMix:
    """Return what a child is trained on: what its reference was, or the subset that it names."""
    assert isinstance(branched.point, Child)
    assert state.spec is not None, "what branched was trained under a run file"
    length = field_of(state.spec, "corpora.sequence_length")
    assert isinstance(length, int), "the resolved run file was checked when it was written"
    return child_mix(state.stage(branched.stage).mix, branched.point, length)


def check_starts(store: Store, state: RunState) -> ChildStarts:
    """Check that what each measured child began with is there.

    Args:
        store: the run's store.
        state: of the run.
    """
    starts = ChildStarts()
    for branched in _children(state):
        key = start_key(branched)
        try:
            manifest = read_manifest(store, key)
        except FileNotFoundError:
            if state.searches.trials[branched.trial].tried:
                problem = "is missing"
                starts.findings.append(Finding(f"{key}/{MANIFEST}", problem, "restore it"))
            continue
        except Damaged as broken:
            starts.findings.append(Finding(broken.key, broken.problem, "restore it"))
            continue
        starts.files |= {manifest.key_of(key, name): file for name, file in manifest.files.items()}
    return starts


def _children(state: RunState) -> Iterator[Branched]:
    for trial in state.searches.trials.values():
        if isinstance(trial.branched.point, Child):
            yield trial.branched
