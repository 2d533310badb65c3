"""Take the trunk back to a checkpoint: stages leave it, and their history stays what it was. Pure.

Corpora of the stages that leave are held: a user lets each be trained again, or refuses it. Where
the checkpoint is in the middle of a stage, that stage goes on from there as it was planned, under
another name, so that the checkpoints of its former end stay what they are.
"""

from __future__ import annotations

from perennial.errors import InvalidTransition
from perennial.runs.entities import Stage
from perennial.runs.events import CorpusEvent, Erased, Held, Refused, Rewound, Started
from perennial.runs.trunk.trunk_state import Resumption, TrunkState


def is_on_trunk(state: TrunkState, stage: Stage) -> bool:
    """Return whether a stage is one of the trunk; plans are not read for it."""
    return [its.name for its in state.stages[stage.after : stage.after + 1]] == [stage.name]


def list_lineage(state: TrunkState, stage: Stage) -> list[Stage]:
    """Return the stages that a stage follows: of the trunk, or of the trunk that it was of."""
    if not any(other.name == stage.name for other in state.abandoned):
        return state.stages[: stage.after]
    stage_at = {end: name for name, end in state.ends.items()}
    behind: list[Stage] = []
    while stage.start is not None:
        stage = state.stage(stage_at[stage.start])
        behind.append(stage)
        if is_on_trunk(state, stage):
            behind += reversed(state.stages[: stage.after])
            break
    return behind[::-1]


def resuming(state: TrunkState) -> Stage | None:
    """Return the stage whose plan goes on next; None unless a rewind left one."""
    return None if state.resumption is None else state.stage(state.resumption.stage)


def forget_resumption(state: TrunkState, event: CorpusEvent) -> None:
    """Let no plan go on once a stage starts, or a corpus of that plan is held or refused."""
    stage = resuming(state)
    is_left_out = (
        isinstance(event, Held | Refused | Erased) and stage and event.corpus in stage.corpora
    )
    if is_left_out or isinstance(event, Started):
        state.resumption = None


def list_leaving(state: TrunkState, event: Rewound) -> list[Stage]:
    """Return the stages that leave the trunk, or do not go on, the last one first.

    Raises:
        InvalidTransition: the trunk has no such stage, or the stage no such step.
    """
    there = [*state.stages, *filter(None, [resuming(state)])]
    names = [stage.name for stage in there]
    if event.stage not in names:
        raise InvalidTransition(event.stage, "no stage of the trunk", event.kind, names)
    place = names.index(event.stage)
    stage = there[place]
    is_end = event.step == stage.last_step
    if not stage.first_step < event.step <= stage.last_step or (
        is_end and (stage.name not in state.ends or place == len(state.stages))
    ):
        steps = f"{stage.first_step + 1} to {stage.last_step}"
        raise InvalidTransition(
            event.stage, f"of steps {steps}", f"{event.kind} to {event.step}", []
        )
    return there[place + is_end :][::-1]


def apply_rewind(state: TrunkState, event: Rewound) -> None:
    """Fold a rewind into the state."""
    leaving = list_leaving(state, event)
    state.resumption = None
    for stage in leaving:
        kind = "resumed" if stage.name == event.stage else "rewound"
        for name in stage.corpora:
            corpus = state.corpora[name]
            state.move(corpus, kind)
            corpus.back = "ready"
            corpus.attempt, corpus.next_try = 0, None
            corpus.reason = event.reason if kind == "rewound" else ""
            corpus.code = ""
        if kind == "resumed":
            state.resumption = Resumption(event.stage, event.step)
        if is_on_trunk(state, stage):
            state.abandoned.append(state.stages.pop())
