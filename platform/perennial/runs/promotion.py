"""Decide whether an alias may point to a release, and what deployments read of it. Pure."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from perennial.errors import InputError
from perennial.runs.events import Promoted, Released

if TYPE_CHECKING:
    from perennial.runs.state import RunState

PREVIOUS = "previous"
"""in place of a release's name: the one to which the alias pointed before"""
_FOLDER = "aliases"
_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_TAKEN = re.compile(r"latest|v\d+|stage-.*")
"""aliases of MLflow's, and those that every release gets"""


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
