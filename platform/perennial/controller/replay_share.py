"""Measure the shift before a stage, from which a replay share of `auto` follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from perennial.controller.evaluate_stage import is_kept, measure
from perennial.controller.origin import measure_origins
from perennial.evaluation.cache import kept_losses
from perennial.evaluation.shift import text_cost
from perennial.runs import summary
from perennial.runs.events import Measured
from perennial.runs.ledger import now
from perennial.runs.unattended.replay_share import ShareDecision, ShareRule, decide_share
from perennial.runs.unattended.stage_replay import measures_shift, replayable

if TYPE_CHECKING:
    from perennial.controller.context import Workspace
    from perennial.evaluation.loss import DocumentLoss
    from perennial.runs.state import RunState
    from perennial.store import Store


def measure_share(work: Workspace, new: Sequence[str]) -> ShareDecision | None:
    """Return the replay share of the stage that begins now, measured where it is not yet.

    Args:
        work: the run.
        new: corpora of the stage.

    Returns:
        None where the run file sets a number, and where there is nothing to replay.
    """
    if not measures_shift(work.spec, work.state, new):
        return None
    if work.state.stages:
        _measure_end(work, new)
    else:
        work.import_model()
        measure_origins(work)
    decision = known_share(work, work.state, new)
    assert decision is not None, "the model was measured on the new corpora and on its own"
    return decision


def forecast_share(
    work: Workspace, state: RunState, new: Sequence[str]
) -> ShareDecision | float | None:
    """Return what a replay share of `auto` is for a stage to come. Reads only.

    Args:
        work: the run.
        state: the run as it will be when the stage begins.
        new: corpora of the stage.

    Returns:
        The decision that the stage will begin with, or the largest share where it is not known;
        None where nothing is measured.
    """
    if not measures_shift(work.spec, state, new):
        return None
    return known_share(work, state, new) or ShareRule().strong_share


def known_share(work: Workspace, state: RunState, new: Sequence[str]) -> ShareDecision | None:
    """Return the replay share of a stage to come; None where the shift was not measured.

    Args:
        work: the run.
        state: the run as it will be when the stage begins.
        new: corpora of the stage.
    """
    if not measures_shift(work.spec, state, new):
        return None
    model = _model(state)
    seen = replayable(work.spec, state, new)
    sizes = {name: state.corpora[name].sequences for name in new}
    losses = _kept(work.store, model, [*seen, *new]) if model else None
    if model is None or losses is None:
        return None
    return decide_share(model, text_cost(losses, seen), text_cost(losses, sizes))


def _model(state: RunState) -> str | None:
    """Return the key of the model from which the next stage starts; None for random weights."""
    if state.stages:
        return state.ends.get(state.stages[-1].name)
    return state.base.folder if state.base else None


def _kept(
    store: Store, model: str, corpora: Sequence[str]
) -> Mapping[str, Sequence[DocumentLoss]] | None:
    kept = {corpus: kept_losses(store, model, corpus) for corpus in corpora}
    known = {corpus: losses for corpus, losses in kept.items() if losses}
    return known if len(known) == len(kept) else None


def _measure_end(work: Workspace, new: Sequence[str]) -> None:
    """Measure the trunk's end on the corpora of which it is not known what they cost it."""
    last = work.state.stages[-1]
    end = work.state.ends[last.name]
    needed = [*replayable(work.spec, work.state, new), *new]
    missing = [name for name in needed if not is_kept(work, end, name)]
    if not missing:
        return
    work.log(f"measuring the end of {last.name} on {', '.join(missing)}, for the replay share")
    losses = measure(work, end, missing, summary.references(work.state, last))
    if last.name in work.state.losses:  # otherwise it is measured beside, which finds these kept
        work.record(Measured(at=now(), stage=last.name, losses=losses))
