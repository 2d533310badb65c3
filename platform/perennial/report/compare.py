"""Compare runs from their ledgers: models of equal cost, gaps, compute saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from perennial.config import RunSpec, read_stored_run
from perennial.errors import InputError
from perennial.evaluation import BASE
from perennial.evaluation.cache import kept_losses
from perennial.evaluation.compare import (
    Bill,
    Gap,
    Model,
    average,
    bill,
    common_corpora,
    equal,
    gap,
    groups,
    same_tokens,
)
from perennial.evaluation.loss import DocumentLoss, HeldoutLoss
from perennial.runs.ledger import Ledger
from perennial.runs.state import RunState, Stage
from perennial.schedules import from_dict
from perennial.store import Store, open_store

if TYPE_CHECKING:
    from perennial.controller.context import Workspace
    from perennial.runs.entities import StoredOrigin


@dataclass(frozen=True)
class ComparedRun:
    """A run as its ledger describes it; `flops_per_token` of its model."""

    spec: RunSpec
    store: Store
    models: tuple[Model, ...]
    bill: Bill
    flops_per_token: int = 0

    @property
    def name(self) -> str:
        """The run's name."""
        return self.spec.name

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


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    corpora: those on which all final models were measured, on the same documents.
    in_nats: whether losses are in nats per token, or in bits per byte as tokenizers differ.
    gaps: of the first run's models to those of the other runs that cost the same.
    """

    runs: tuple[ComparedRun, ...]
    corpora: tuple[str, ...]
    in_nats: bool
    gaps: tuple[Gap, ...]

    @property
    def groups(self) -> list[list[Model]]:
        """The models that the runs start from and the final ones, those of equal cost together."""
        measured = {*self.corpora}
        bases = [run.base for run in self.runs if run.base and measured <= run.base.losses.keys()]
        return groups([*bases, *(model for run in self.runs for model in run.final)])

    @property
    def tasks(self) -> dict[str, dict[str, Mapping[str, Any]]]:
        """Scores of each run's last model, by task and metric; tasks without one are left out."""
        scores_by_task: dict[str, dict[str, Mapping[str, Any]]] = {}
        for run in self.runs:
            for score in run.final[-1].scores:
                if "value" in score:
                    task = f"{score['task']} {score['metric']}"
                    scores_by_task.setdefault(task, {})[run.name] = score
        return scores_by_task

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {
            "unit": "nats per token" if self.in_nats else "bits per byte",
            "corpora": list(self.corpora),
            "runs": [_plain(run, self) for run in self.runs],
            "gaps": [
                {
                    "run": gap.ours.run,
                    "model": gap.ours.name,
                    "against": {"run": gap.theirs.run, "model": gap.theirs.name},
                    "corpora": {name: change._asdict() for name, change in gap.corpora.items()},
                    "average": gap.average._asdict() if gap.average else None,
                }
                for gap in self.gaps
            ],
        }


def _plain(run: ComparedRun, comparison: Comparison) -> dict[str, Any]:
    models = [
        asdict(model) | {"average": average(model, comparison.corpora, comparison.in_nats)}
        for model in run.models
    ]
    totals = {
        "tokens": run.bill.tokens,
        "retrained_tokens": run.bill.retrained_tokens,
        "saved": run.bill.saved,
        "flops": run.bill.tokens * run.flops_per_token,
        "retrained_flops": run.bill.retrained_tokens * run.flops_per_token,
    }
    compute = asdict(run.bill) | totals | {"flops_per_token": run.flops_per_token}
    return {"run": run.name, "store": run.spec.store, "models": models, "compute": compute}


def compare(works: Sequence[Workspace]) -> Comparison:
    """The runs of these workspaces side by side; reads alone.

    Raises InputError for a run without an evaluated stage, and for two runs in one store.
    """
    from perennial.planning.plan import model_flops

    runs: list[ComparedRun] = []
    for work in works:
        if work.store.url in [run.store.url for run in runs]:
            raise InputError(
                work.where,
                "store",
                "another of these runs has the same store",
                "name each once",
                code="store-twice",
            )
        read = read_run(work.spec, work.store, work.ledger.read())
        if read is None:
            raise InputError(
                work.where,
                "",
                f"no stage of {work.spec.name} was evaluated yet",
                f"use `perennial run {work.where}`",
                code="nothing-evaluated",
            )
        spec, models, costs = read.spec, read.models, read.bill
        runs.append(ComparedRun(spec, work.store, models, costs, model_flops(work)))
    finals = [model for run in runs for model in run.final]
    corpora = common_corpora(finals)
    in_nats = same_tokens(finals, corpora)
    gaps = gaps_of(runs[0], runs[1:], corpora) if in_nats else ()
    return Comparison(tuple(runs), corpora, in_nats, tuple(gaps))


def read_run(spec: RunSpec, store: Store, state: RunState) -> ComparedRun | None:
    """A run from its ledger; None before a stage was evaluated."""
    measured = [stage for stage in state.stages if stage.name in state.losses]
    if not measured:
        return None
    models = [_stage_model(spec, state, stage) for stage in measured]
    models += [_release_model(spec, state, i) for i in range(len(state.releases))]
    if state.base is not None:
        models.append(_base_model(spec, state.base))
    return ComparedRun(
        spec, store, tuple(sorted(models, key=lambda m: m.tokens)), _bill(spec, state)
    )


def gaps_of(ours: ComparedRun, others: Sequence[ComparedRun], corpora: Sequence[str]) -> list[Gap]:
    """Gaps of a run's final models to those of other runs that cost the same."""
    stores = {run.name: run.store for run in (ours, *others)}

    def documents(model: Model, corpus: str) -> list[DocumentLoss] | None:
        return kept_losses(stores[model.run], model.key, corpus)

    return [
        gap(mine, theirs, corpora, documents)
        for mine in ours.final
        for other in others
        for theirs in other.final
        if equal(mine, theirs)
    ]


def baseline_gap(spec: RunSpec, store: Store, state: RunState) -> Gap | None:
    """The gap to the run file's baseline: of the models that cost the same, else of the last ones.

    None while either has nothing measured, or nothing in common.
    """
    if spec.evaluation.baseline is None:
        return None
    their_store = open_store(spec.evaluation.baseline)
    their_state = Ledger(their_store).read()
    ours = read_run(spec, store, state)
    theirs = (
        read_run(read_stored_run(their_state.spec), their_store, their_state)
        if their_state.spec
        else None
    )
    if ours is None or theirs is None:
        return None
    pairs = [(mine, other) for mine in reversed(ours.final) for other in reversed(theirs.final)]
    chosen = next((pair for pair in pairs if equal(*pair)), pairs[0])
    corpora = common_corpora(chosen)
    if not corpora or not same_tokens(chosen, corpora):
        return None
    stores = {id(chosen[0]): store, id(chosen[1]): their_store}
    return gap(*chosen, corpora, lambda m, corpus: kept_losses(stores[id(m)], m.key, corpus))


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
        tokens=stage.last_step * spec.tokens_per_step,
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
        tokens=(decided.step + release.steps) * spec.tokens_per_step,
        decayed=True,
        losses=release.losses,
        sources=dict(sources),
        scores=state.scores.get(release.name, ()),
    )


def _bill(spec: RunSpec, state: RunState) -> Bill:
    anneals: dict[str, int] = {}
    for release in state.releases:
        decided = state.branches[release.name]
        if decided.step == state.stage(decided.stage).last_step:
            anneals[decided.stage] = release.steps * spec.tokens_per_step
    trained = [stage for stage in state.stages if stage.name in state.ends]
    return bill([(s.name, s.mix.steps * spec.tokens_per_step) for s in trained], anneals)


def _sources(spec: RunSpec, state: RunState, stage: Stage, step: int) -> dict[str, int]:
    seen = state.seen(stage, step)
    return {name: count * spec.corpora.sequence_length for name, count in seen.items()}


def _losses(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, HeldoutLoss]:
    return {corpus: HeldoutLoss.from_dict(cell) for corpus, cell in cells.items()}
