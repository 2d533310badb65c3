"""Define the states of corpora and releases, and the transitions between them."""

from __future__ import annotations

from typing import Literal

from perennial.errors import InvalidTransition
from perennial.runs.events import Released, Releasing

CorpusState = Literal[
    "unknown",
    "landed",
    "ingesting",
    "ready",
    "training",
    "trained",
    "evaluating",
    "evaluated",
    "gated",
    "passed",
    "held",
    "failed",
    "refused",
    "retired",
    "erased",
]
Back = Literal["back"]
"""to the state from which the corpus was held, failed or refused"""

ON_THE_TRUNK: tuple[CorpusState, ...] = (
    "training",
    "trained",
    "evaluating",
    "evaluated",
    "gated",
    "passed",
    "retired",
)
"""States of a corpus that has a stage of the trunk, besides `failed` in one of these."""

FINISHED: tuple[CorpusState, ...] = ("passed", "retired", "erased")
"""States of a corpus whose stage is behind the trunk's end."""

ASIDE: tuple[CorpusState, ...] = ("held", "failed", "refused")
"""States from which `retried` leads back."""

TRANSITIONS: dict[tuple[CorpusState, str], CorpusState | Back] = {
    ("unknown", "landed"): "landed",
    ("landed", "ingesting"): "ingesting",
    ("ingesting", "ingesting"): "ingesting",
    ("ingesting", "extended"): "ingesting",
    ("ingesting", "ready"): "ready",
    ("ready", "started"): "training",
    ("training", "trained"): "trained",
    ("trained", "evaluating"): "evaluating",
    ("evaluating", "evaluated"): "evaluated",
    ("evaluated", "passed"): "passed",
    ("evaluated", "gated"): "gated",
    ("gated", "accepted"): "passed",
    ("ready", "accepted"): "ready",  # its stage may begin
    ("passed", "retired"): "retired",
    ("retired", "unretired"): "passed",
    # A failed action is tried again from the state in which it failed.
    ("landed", "failed"): "failed",
    ("ingesting", "failed"): "failed",
    ("ready", "failed"): "failed",
    ("training", "failed"): "failed",
    ("trained", "failed"): "failed",
    ("evaluating", "failed"): "failed",
    ("evaluated", "failed"): "failed",
    ("gated", "failed"): "failed",  # at a search
    ("failed", "retried"): "back",
    # Decisions of users, and wrong input.
    ("landed", "held"): "held",
    ("ready", "held"): "held",
    ("held", "retried"): "back",
    ("landed", "refused"): "refused",
    ("ingesting", "refused"): "refused",
    ("ready", "refused"): "refused",
    ("held", "refused"): "refused",
    ("failed", "refused"): "refused",
    ("refused", "retried"): "back",
    # A stage that a gate stopped leaves the trunk, which then stands where the stage began.
    ("gated", "retried"): "ready",
    ("gated", "refused"): "refused",
    # Of a stage of several corpora one is refused: the others are trained without it.
    ("failed", "freed"): "ready",
    ("gated", "freed"): "ready",
}

# An erased corpus leaves an unfinished stage, and nothing can happen to it any more.
TRANSITIONS |= {
    (state, "erased"): "erased"
    for state in ("landed", "ready", "held", "failed", "refused", *ON_THE_TRUNK)
}
TRANSITIONS |= {(state, "freed"): "ready" for state in ON_THE_TRUNK[:-2]}

# The trunk was taken back to before the corpus's stage: it waits for a user. Where it was taken
# back to a step of the stage itself, the stage goes on from there.
_LEFT: tuple[CorpusState, ...] = ("ready", "failed", *ON_THE_TRUNK)
TRANSITIONS |= {(state, "rewound"): "held" for state in _LEFT}
TRANSITIONS |= {(state, "resumed"): "ready" for state in _LEFT}

ReleaseState = Literal["unknown", "releasing", "released"]

RELEASE_TRANSITIONS: dict[tuple[ReleaseState, str], ReleaseState] = {
    ("unknown", "releasing"): "releasing",
    ("releasing", "releasing"): "releasing",
    ("releasing", "released"): "released",
}


def check_release(event: Releasing | Released, state: ReleaseState, last: Releasing | None) -> None:
    """Raise InvalidTransition where a release cannot be in that state, or was claimed since.

    Args:
        event: what happened to it.
        state: its state before.
        last: its last claim, where it is not made yet.
    """
    story = [f"{last.kind} (claim {last.claim})"] if last else []
    if (state, event.kind) not in RELEASE_TRANSITIONS:
        raise InvalidTransition(event.name, state, event.kind, story)
    if isinstance(event, Releasing) and event.claim != (last.claim if last else 0) + 1:
        raise InvalidTransition(event.name, state, f"claim {event.claim}", story)
