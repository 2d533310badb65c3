"""Record a user's decision about a corpus; the controller in charge follows it."""

from __future__ import annotations

from contextlib import suppress
from typing import Literal

from perennial import corpora
from perennial.controller.context import Workspace
from perennial.controller.ingest_stage import landing
from perennial.controller.tokenizer_growth import check_return
from perennial.errors import InputError, InvalidTransition
from perennial.runs.events import (
    Accepted,
    CorpusEvent,
    Held,
    Refused,
    Retired,
    Retried,
    Unretired,
)
from perennial.runs.ledger import now
from perennial.runs.stage_planner import order_of
from perennial.runs.state import Corpus, RunState
from perennial.runs.transitions import TRANSITIONS
from perennial.runs.trunk.rewinding import resuming

Decision = Literal["hold", "retry", "refuse", "retire", "unretire", "accept"]

_KINDS: dict[Decision, str] = {
    "hold": "held",
    "retry": "retried",
    "refuse": "refused",
    "retire": "retired",
    "unretire": "unretired",
    "accept": "accepted",
}


def decide(
    work: Workspace, decision: Decision, name: str, reason: str = "", replay: float | None = None
) -> Corpus:
    """Write a user's decision to the ledger.

    Args:
        work: the run; this process need not be in charge of it.
        decision: what to do with the corpus.
        name: the corpus.
        reason: why, kept in the ledger.
        replay: with `retry`, the replay share of the corpus's next stage.

    Returns:
        The corpus after the decision.

    Raises:
        InputError: there is no such corpus, or its state does not allow the decision.
    """
    check(work, decision, name, replay)
    if name not in work.state.corpora:
        record_landings(work, name)
    try:
        work.amend(_event(decision, name, reason or "operator decision", replay))
    except InvalidTransition as impossible:
        raise InputError(
            work.where,
            name,
            str(impossible),
            "check `perennial status` and try again",
            code="decision-not-possible",
        ) from None
    return work.state.corpora[name]


def check(work: Workspace, decision: Decision, name: str, replay: float | None) -> None:
    """Raise InputError for a decision that the corpus's state does not allow; reads only."""
    state = work.ledger.read()
    corpus = state.corpora.get(name)
    if corpus is None:
        if name not in [landed.name for landed in corpora.list_landed(work.inbox)]:
            known = ", ".join(state.corpora) or "none yet"
            raise InputError(
                work.where,
                name,
                "there is no such corpus",
                f"corpora: {known}",
                code="corpus-missing",
            )
        corpus = Corpus(name, state="landed")
    if (corpus.state, _KINDS[decision]) not in TRANSITIONS:
        possible = [verb for verb, kind in _KINDS.items() if (corpus.state, kind) in TRANSITIONS]
        raise InputError(
            work.where,
            name,
            f"it is {corpus.state}, so there is nothing to {decision}",
            f"possible now: {', '.join(possible) or _otherwise(corpus)}",
            code="decision-not-possible",
        )
    if decision == "accept" and corpus.state == "ready":
        _check_awaited(work, corpus)
    if decision == "retry":
        check_return(work, corpus)
    again = resuming(state)
    is_planned = corpus.stands_at == "training" or (again is not None and name in again.corpora)
    if replay is not None and is_planned:
        raise InputError(
            work.where,
            "--replay",
            f"the stage of {name} is decided already",
            f"refuse {name} first, then retry it with another share",
            code="stage-already-planned",
        )


def _otherwise(corpus: Corpus) -> str:
    if corpus.state == "erased":
        return "nothing; what may be trained lands under another name"
    return "wait until its stage is done"


def _check_awaited(work: Workspace, corpus: Corpus) -> None:
    order = order_of(work.spec)
    if order.may_begin(corpus) or not order.trains(corpus.name):
        raise InputError(
            work.where,
            corpus.name,
            "its stage waits for no approval",
            "set stages.approval: manual to have stages wait for one",
            code="decision-not-possible",
        )


def record_landings(work: Workspace, name: str) -> None:
    """Record a corpus of the inbox, after those that landed before it."""
    for landed in corpora.list_landed(work.inbox):
        if landed.name not in work.ledger.read().corpora:
            with suppress(InvalidTransition):  # a controller recorded it at the same moment
                work.amend(landing(work, landed))
        if landed.name == name:
            return


def choices(state: RunState, where: str) -> list[tuple[str, str]]:
    """Return the user's three options for a gated stage, as pairs of command and effect.

    Args:
        state: the run; without a gated stage there are no options.
        where: path of the run file, for the commands.
    """
    stage = state.gated
    if stage is None:
        return []
    name, *others = stage.corpora
    left_out = f"leave {name} out; {', '.join(others)} will be trained without it"
    return [
        (
            f"perennial retry {where} {name} --replay SHARE",
            f"train it again from {stage.start or 'the beginning'} with another replay share",
        ),
        (f"perennial accept {where} {name}", f"accept {stage.name} as it is"),
        (
            f"perennial refuse {where} {name}",
            left_out if others else "leave the corpus out; the trunk stays at its previous end",
        ),
    ]


def _event(decision: Decision, name: str, reason: str, replay: float | None) -> CorpusEvent:
    match decision:
        case "hold":
            return Held(at=now(), corpus=name, reason=reason)
        case "retry":
            return Retried(at=now(), corpus=name, replay=replay)
        case "refuse":
            return Refused(at=now(), corpus=name, reason=reason)
        case "retire":
            return Retired(at=now(), corpus=name, reason=reason)
        case "unretire":
            return Unretired(at=now(), corpus=name, reason=reason)
        case "accept":
            return Accepted(at=now(), corpus=name, reason=reason)
