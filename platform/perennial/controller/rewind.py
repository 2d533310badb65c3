"""Take the trunk of a run back to one of its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perennial import corpora
from perennial.controller.release import find_step
from perennial.errors import InputError, InvalidTransition
from perennial.runs.events import Rewound
from perennial.runs.ledger import now
from perennial.runs.trunk.rewinding import list_leaving, resuming
from perennial.runs.trunk.trunk_state import Resumption
from perennial.schedules import from_dict
from perennial.training.checkpoint.manifest import folder_of, read_manifest
from perennial.training.checkpoint.same_plan import check_same_plan

if TYPE_CHECKING:
    from perennial.controller.context import Workspace
    from perennial.runs.state import Stage


@dataclass(frozen=True)
class Rewinding:
    """The effect of taking the trunk back.

    Attributes:
        stage, step: the checkpoint where the trunk stands.
        left: the stages that leave the trunk, the last one first; none where it stands there.
        held: corpora that wait for `retry` or `refuse`.
        goes_on: corpora whose stage goes on from that step; none where it is the stage's end.
    """

    stage: str
    step: int
    left: tuple[str, ...]
    held: tuple[str, ...]
    goes_on: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def rewind(work: Workspace, to: str, reason: str = "") -> Rewinding:
    """Take the trunk back to a checkpoint; nothing is deleted.

    Takes charge, so that no controller trains a stage that leaves. Safe to repeat and to kill: it
    is one event.

    Args:
        work: the run.
        to: `STAGE@STEP`, or `STAGE` for its end.
        reason: why, kept in the ledger.

    Raises:
        Busy: a controller is in charge, and lives.
        InputError: there is no such checkpoint, it is of another plan than its stage, or a corpus
            has entries of the tokenizer that would no longer be in force.
    """
    done = plan_rewind(work, to)
    if done.left:
        work.take_charge()
        done = plan_rewind(work, to)  # as the controller before left it
    if done.left:
        place = f"{done.stage}@{done.step}"
        why = reason or f"the trunk was taken back to {place}"
        work.decide(Rewound(at=now(), stage=done.stage, step=done.step, reason=why))
        work.log(f"the trunk stands at {place}")
    return done


def plan_rewind(work: Workspace, to: str) -> Rewinding:
    """Return what `rewind` would do; arguments and errors are its, and it reads only."""
    state = work.ledger.read()
    again = resuming(state)
    name, at, text = to.partition("@")
    there = {stage.name: stage for stage in (*state.stages, *filter(None, [again]))}
    stage = there.get(name)
    if stage is None:
        raise InputError(
            "command line",
            "STAGE",
            f"the trunk has no stage {name!r}",
            f"its stages: {', '.join(there) or 'none yet'}",
            code="stage-missing",
        )
    step = find_step(work.store, stage, text if at else None, "STAGE")
    key = folder_of(stage.folder, step)
    check_same_plan(key, read_manifest(work.store, key), stage.mix, from_dict(stage.schedule))
    event = Rewound(at=now(), stage=name, step=step)
    try:
        leaving = list_leaving(state, event)
    except InvalidTransition as impossible:
        raise InputError(
            "command line",
            "STAGE",
            str(impossible),
            "name a step before its end, or the end of an earlier stage",
            code="decision-not-possible",
        ) from None
    if state.resumption == Resumption(name, step):
        leaving = []  # it stands there already
    behind = [its for its in leaving if its is not stage]
    check_entries(work, name, behind)
    return Rewinding(
        stage=name,
        step=step,
        left=tuple(its.name for its in leaving),
        held=tuple(corpus for its in behind for corpus in its.corpora),
        goes_on=stage.corpora if len(behind) < len(leaving) else (),
    )


def check_entries(work: Workspace, to: str, leaving: list[Stage]) -> None:
    """Refuse to take away entries of the tokenizer that another corpus has ids of."""
    state = work.state
    names = [name for stage in leaving for name in stage.corpora if name in state.extensions]
    lost = {state.extensions[name].fingerprint: name for name in names}
    for corpus in state.corpora.values() if lost else ():
        if corpus.sequences and corpus.name not in names:
            brought_by = lost.get(corpora.read_manifest(work.store, corpus.name).tokenizer)
            if brought_by is not None:
                raise InputError(
                    "command line",
                    "STAGE",
                    f"{corpus.name} has ids of entries that {brought_by} brought to the tokenizer, "
                    f"which the trunk at {to} does not know",
                    f"name {state.stage_of(brought_by).name} or a later stage",
                    code="tokenizer-would-shrink",
                )
