"""Checks of aliases: each points to a release whose gates hold, and the store says the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from perennial.audit.checks import ledger_key
from perennial.audit.finding import Finding
from perennial.runs.events import Promoted
from perennial.runs.promotion import alias_key, alias_object, failing_gates

if TYPE_CHECKING:
    from perennial.audit.checks import FoldedLedger
    from perennial.store import Store


def check_promotions(store: Store, story: FoldedLedger) -> Iterator[Finding]:
    """Check every alias that was ever moved, and the object of each.

    Args:
        store: the run's store.
        story: the folded ledger.
    """
    state = story.state
    for number, event in enumerate(story.events):
        if isinstance(event, Promoted) and (problem := failing_gates(state, event.release)):
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
