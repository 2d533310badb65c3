"""Decide which releases are due, and to which of them an alias may point. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from perennial.errors import InputError
from perennial.runs.events import Promoted, Released, Releasing
from perennial.runs.stage_planner import decide_release
from perennial.runs.state import RunState, Stage

if TYPE_CHECKING:
    from perennial.config import RunSpec

Checkpoints = Callable[[Stage], Sequence[int]]
"""The trunk steps at which a stage has checkpoints, in order."""


PREVIOUS = "previous"
"""in place of a release's name: the one to which the alias pointed before"""
_FOLDER = "aliases"
_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_TAKEN = re.compile(r"latest|v\d+|stage-.*")
"""aliases of MLflow's, and those that every release gets"""


def due(spec: RunSpec, state: RunState, checkpoints: Checkpoints, now: str) -> list[Releasing]:
    """Plan the releases that are due and do not exist yet, the earliest step first.

    Only checkpoints of the last stage that passed its gates are released: a policy that is turned
    on late does not release the whole past. `every` takes the first checkpoint at or after each
    multiple of its tokens, counted from the trunk's first step.

    Args:
        spec: the run file.
        state: the run as of the last read of the ledger.
        checkpoints: lists the trunk steps of a stage's checkpoints.
        now: UTC time, ISO 8601.
    """
    policy = spec.release.policy
    if policy == "on-demand":
        return []
    passed = (stage for stage in reversed(state.stages) if state.has_passed(stage))
    stage = next(passed, None)
    if stage is None:
        return []
    steps = [stage.last_step]
    if policy == "every":
        steps = _multiples(spec, stage, checkpoints(stage))
    elif policy == "schedule" and not _slot_is_open(spec, state, now):
        return []
    wanted = [decide_release(spec, state, stage, step, None, now) for step in steps]
    return [release for release in wanted if state.release_state(release.name) != "released"]


def _multiples(spec: RunSpec, stage: Stage, checkpoints: Sequence[int]) -> list[int]:
    assert spec.release.every is not None  # the run file's schema says so
    every = max(1, spec.release.every.steps(0, spec.tokens_per_step))
    first = stage.first_step // every * every + every
    chosen = []
    for multiple in range(first, stage.last_step + 1, every):
        after = [step for step in checkpoints if step >= multiple]
        chosen += after[:1]
    return list(dict.fromkeys(chosen))


def _slot_is_open(spec: RunSpec, state: RunState, now: str) -> bool:
    """Return whether no release was made since the last time of the timetable."""
    assert spec.release.schedule is not None
    if not state.releases:
        return True
    last = datetime.fromisoformat(state.releases[-1].at)
    return last < spec.release.schedule.last_due(datetime.fromisoformat(now))


def alias_key(alias: str) -> str:
    """Return the key of the object that says where an alias points."""
    return f"{_FOLDER}/{alias}.json"


def alias_object(released: Released, alias: str) -> bytes:
    """Return the object that says where an alias points; it follows from the ledger alone."""
    document = {"alias": alias, "release": released.name, "folder": released.folder}
    return json.dumps(document, indent=1).encode()


def failing_gates(state: RunState, release: str) -> str:
    """Return why the gates of a release's stage do not hold; "" where they do."""
    stage = state.branches[release].stage
    if stage not in state.verdicts:
        return f"{stage} has no verdicts of its gates yet"
    broken = [verdict for verdict in state.verdicts[stage] if not verdict.holds]
    if not broken:
        return ""
    gates = ", ".join(f"{verdict.gate} of {verdict.subject}" for verdict in broken)
    return f"{stage} broke {gates}" + (", and was accepted" if stage in state.accepted else "")


def decide_promotion(
    state: RunState, release: str, alias: str, reason: str, at: str
) -> Promoted | None:
    """Plan the move of an alias to a release.

    Args:
        state: the run as of the last read of the ledger.
        release: its name, or `previous`.
        alias: such as `production`.
        reason: why, kept in the ledger.
        at: UTC time of the event, ISO 8601.

    Returns:
        The event; None where the alias points there already.

    Raises:
        InputError: there is no such release, its gates do not hold, or the alias is none.
    """
    if not _ALIAS.fullmatch(alias) or _TAKEN.fullmatch(alias):
        raise InputError(
            "command line",
            "ALIAS",
            f"{alias!r} is no alias, or one that has a meaning of its own",
            "write a name such as production: lower-case letters, digits, dash, underscore",
            code="alias-invalid",
        )
    pointed = state.aliases.get(alias, [])
    name = _before(alias, pointed) if release == PREVIOUS else release
    names = [made.name for made in state.releases]
    if name not in names:
        raise InputError(
            "command line",
            "RELEASE",
            f"there is no release {name!r}",
            f"its releases: {', '.join(names) or 'none yet'}",
            code="release-missing",
        )
    problem = failing_gates(state, name)
    if problem:
        raise InputError(
            "command line",
            "RELEASE",
            f"the gates of {name} do not hold: {problem}",
            "promote a release of a stage that passed its gates",
            code="gates-not-held",
        )
    if pointed[-1:] == [name]:
        return None
    return Promoted(at=at, release=name, alias=alias, reason=reason)


def _before(alias: str, pointed: list[str]) -> str:
    """Return the release to which an alias pointed before it pointed where it does now."""
    if len(pointed) < 2:
        raise InputError(
            "command line",
            "RELEASE",
            f"{alias} points to {pointed[0]}, and to nothing before" if pointed
            else f"{alias} points to no release",
            "name a release",
            code="release-missing",
        )  # fmt: skip
    return pointed[-2]
