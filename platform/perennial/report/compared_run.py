"""A run as its ledger describes it: its measured models, its matrix, and its cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from perennial.config import RunSpec
from perennial.evaluation import BASE, LossMatrix
from perennial.evaluation.compare import Bill, Model, bill
from perennial.runs import summary
from perennial.runs.state import RunState, Stage
from perennial.schedules import from_dict
from perennial.store import Store

if TYPE_CHECKING:
    from perennial.evaluation.loss import HeldoutLoss
    from perennial.runs.entities import StoredOrigin
    from perennial.runs.events import Released


@dataclass(frozen=True)
class ComparedRun:
    """A run as its ledger describes it.

    flops_per_token: of its model.
    label: its name where several runs of a comparison have the same one; "" for its own.
    matrix: the losses after each stage.
    released: by stage, the losses of the release off its end.
    """

    spec: RunSpec
    store: Store
    models: tuple[Model, ...]
    bill: Bill
    flops_per_token: int = 0
    label: str = ""
    matrix: LossMatrix = field(default_factory=lambda: LossMatrix(()))
    released: Mapping[str, Mapping[str, HeldoutLoss]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run's name, distinct in its comparison."""
        return self.label or self.spec.name

    @property
    def base(self) -> Model | None:
        """The stored model that the trunk starts from; None for random weights."""
        return next((model for model in self.models if model.name == BASE), None)

    @property
    def final(self) -> tuple[Model, ...]:
        """The end of the trunk, and the release off it where there is one.

        A release of a trunk that had decayed already has the same weights, and is no other model.
        """
        trunk = [model for model in self.models if not model.key.startswith("releases/")][-1]
        later = [m for m in self.models if m is not trunk and m.tokens >= trunk.tokens]
        if later and later[-1].tokens == trunk.tokens:
            return (replace(trunk, scores=(*trunk.scores, *later[-1].scores)),)
        return (trunk, *later[-1:])


def read_run(spec: RunSpec, store: Store, state: RunState, label: str = "") -> ComparedRun | None:
    """Return a run as its ledger describes it; None before a stage was evaluated.

    Args:
        spec: its run file.
        store: its store.
        state: its ledger, folded.
        label: a name in place of its own.
    """
    measured = [stage for stage in state.stages if stage.name in state.losses]
    if not measured:
        return None
    models = [_stage_model(spec, state, stage) for stage in measured]
    models += [_release_model(spec, state, i) for i in range(len(state.releases))]
    if state.base is not None:
        models.append(_base_model(spec, state.base))
    named = [replace(model, run=label or spec.name) for model in models]
    return ComparedRun(
        spec,
        store,
        tuple(sorted(named, key=lambda m: m.tokens)),
        _bill(spec, state),
        label=label,
        matrix=summary.matrix(state),
        released={stage.name: release.losses for stage, release in _anneals_off_ends(state)},
    )


def _base_model(spec: RunSpec, base: StoredOrigin) -> Model:
    return Model(
        run=spec.name,
        name=base.name,
        key=base.folder,
        tokens=0,
        decayed=False,
        losses=base.losses,
        scores=base.scores,
    )


def _stage_model(spec: RunSpec, state: RunState, stage: Stage) -> Model:
    return Model(
        run=spec.name,
        name=stage.name,
        key=state.ends[stage.name],
        tokens=summary.tokens_until(state, stage, stage.last_step, spec.corpora.sequence_length),
        decayed=from_dict(stage.schedule).phase(stage.last_step - 1) == "anneal",
        losses=state.losses[stage.name],
        sources=_sources(spec, state, stage, stage.last_step),
        scores=state.stage_scores.get(stage.name, ()),
    )


def _release_model(spec: RunSpec, state: RunState, index: int) -> Model:
    release = state.releases[index]
    decided = state.branches[release.name]
    stage = state.stage(decided.stage)
    sources = Counter(_sources(spec, state, stage, decided.step))
    if decided.mix is not None:
        for source in decided.mix.sources:
            sources[source.corpus] += source.sequences * spec.corpora.sequence_length
    return Model(
        run=spec.name,
        name=release.name,
        key=release.folder,
        tokens=summary.tokens_until(state, stage, decided.step, spec.corpora.sequence_length)
        + _annealed(spec, state, release),
        decayed=True,
        losses=release.losses,
        sources=dict(sources),
        scores=state.scores.get(release.name, ()),
    )


def _bill(spec: RunSpec, state: RunState) -> Bill:
    anneals = {
        stage.name: _annealed(spec, state, release) for stage, release in _anneals_off_ends(state)
    }
    trained = [stage for stage in state.stages if stage.name in state.ends]
    length = spec.corpora.sequence_length
    return bill([(s.name, s.mix.steps * s.mix.global_batch * length) for s in trained], anneals)


def _annealed(spec: RunSpec, state: RunState, release: Released) -> int:
    """Return the tokens of a release's own steps."""
    decided = state.branches[release.name]
    mix = decided.mix or state.stage(decided.stage).mix
    return release.steps * mix.global_batch * spec.corpora.sequence_length


def _anneals_off_ends(state: RunState) -> Iterator[tuple[Stage, Released]]:
    """Yield the releases that were annealed off a stage's end, with the stage."""
    for release in state.releases:
        decided = state.branches[release.name]
        stage = state.stage(decided.stage)
        if decided.step == stage.last_step and decided.average is None:
            yield stage, release


def _sources(spec: RunSpec, state: RunState, stage: Stage, step: int) -> dict[str, int]:
    seen = state.seen(stage, step)
    return {name: count * spec.corpora.sequence_length for name, count in seen.items()}
