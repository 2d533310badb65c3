"""Point an alias such as `production` to a release: in the ledger, the store and the registry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perennial.runs.ledger import now
from perennial.runs.release_policy import alias_key, alias_object, decide_promotion

if TYPE_CHECKING:
    from perennial.controller.context import Workspace
    from perennial.runs.state import RunState


@dataclass(frozen=True)
class Promotion:
    """An alias of a release.

    Attributes:
        alias: such as `production`.
        release: the release to which it points now.
        before: the one to which it pointed before; "" for none.
        folder: key of the release's folder.
        moved: whether it pointed elsewhere.
        missing: what MLflow did not take, such as the registration; `track` brings it.
    """

    alias: str
    release: str
    before: str
    folder: str
    moved: bool
    missing: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def promote(work: Workspace, release: str, alias: str, reason: str = "") -> Promotion:
    """Point an alias to a release whose gates hold. Safe to repeat and to kill.

    Args:
        work: the run; this process need not be in charge of it.
        release: its name, or `previous` for the one before.
        alias: such as `production`.
        reason: why, kept in the ledger.

    Raises:
        InputError: there is no such release, its gates do not hold, or the alias is none.
        Busy: the run is mended now.
    """
    done = plan_promotion(work, release, alias)
    if done.moved:
        event = decide_promotion(work.state, done.release, alias, reason, now())
        assert event is not None
        work.amend(event)
    made = next(made for made in work.state.releases if made.name == done.release)
    # Again where it points there already: a process may have been killed behind its event.
    work.store.write(alias_key(alias), alias_object(made, alias))
    work.notify(lambda observer: observer.promoted(work, made, alias))
    return done


def plan_promotion(work: Workspace, release: str, alias: str) -> Promotion:
    """Return what `promote` would do; arguments and errors are its, and it reads only."""
    state = work.ledger.read()
    event = decide_promotion(state, release, alias, "", now())
    pointed = state.aliases.get(alias, [])
    name = event.release if event is not None else pointed[-1]
    before = pointed if event is not None else pointed[:-1]
    return Promotion(alias, name, (before or [""])[-1], _folder(state, name), event is not None)


def _folder(state: RunState, release: str) -> str:
    return next(made.folder for made in state.releases if made.name == release)
