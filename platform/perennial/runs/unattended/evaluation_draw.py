"""Decide which corpora the end of a stage is measured on. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from perennial.evaluation.budget import Draw, draw_corpora
from perennial.evaluation.gates import is_named
from perennial.runs.stage_planner import order_of
from perennial.runs.trunk.containment import trained_corpora

if TYPE_CHECKING:
    from perennial.config import RunSpec
    from perennial.runs.state import RunState, Stage


def decide_draw(spec: RunSpec, state: RunState, stage: Stage, ready: Sequence[str]) -> Draw | None:
    """Return the corpora that a stage's end is measured on besides its own.

    Corpora that will have a stage of their own are left out until then; those that never have one
    are drawn like those that were trained.

    Args:
        spec: the run file.
        state: the run.
        stage: the one at work.
        ready: corpora that can be measured, in the order of landing.

    Returns:
        None where no budget is set, for all of them.
    """
    if spec.evaluation.corpora is None:
        return None
    trained, order = dict.fromkeys(trained_corpora(state, stage)), order_of(spec)
    others = {name for name in ready if name not in stage.corpora}
    always = tuple(n for n in ready if n in others and is_named(spec.gates.corpora, n))
    others -= {*always}
    waiting = [name for name in ready if name not in trained]
    never = [name for name in waiting if not order.trains(name)]
    pool = [name for name in (*trained, *never) if name in others]
    measured = {name: state.corpora[name].measured for name in pool}
    known = {name for earlier in state.lineage(stage) for name in earlier.corpora}
    known |= {*(state.base.losses if state.base else ())}
    drawn = draw_corpora(pool, measured, spec.evaluation.corpora)
    return Draw(always, drawn, sum(name in known for name in pool))


def measured_corpora(draw: Draw | None, stage: Stage, ready: Sequence[str]) -> list[str]:
    """Return the corpora that a stage's end is measured on, in the order of landing.

    Args:
        draw: as `decide_draw` returned it.
        stage: the stage.
        ready: corpora that can be measured, in the order of landing.
    """
    if draw is None:
        return [*ready]
    chosen = {*stage.corpora, *draw.always, *draw.drawn}
    return [name for name in ready if name in chosen]
