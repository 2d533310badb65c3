"""Compare runs from their ledgers: models of equal cost, gaps, compute saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from perennial.config import RunSpec, read_stored_run
from perennial.errors import InputError
from perennial.evaluation.cache import kept_losses
from perennial.evaluation.compare import (
    Gap,
    Model,
    average,
    common_corpora,
    equal,
    gap,
    groups,
    same_tokens,
)
from perennial.evaluation.loss import DocumentLoss
from perennial.evaluation.seeds import SeededGap, SeededModel, gap_by_seed, mean_losses
from perennial.evaluation.statistics import estimate
from perennial.report.arms import Arm, group_arms, name_runs
from perennial.report.compared_run import ComparedRun, read_run
from perennial.report.time_steps import MEANS, TransferRow, transfer_rows
from perennial.runs.ledger import Ledger
from perennial.runs.state import RunState
from perennial.store import Store, open_run_store

if TYPE_CHECKING:
    from perennial.controller.context import Workspace


@dataclass(frozen=True)
class Comparison:
    """Runs side by side, those that differ in their seed alone as one arm.

    corpora: those on which all final models were measured, on the same documents.
    in_nats: whether losses are in nats per token, or in bits per byte as tokenizers differ.
    gaps: of the first run's models to those of the other runs that cost the same, over documents;
        none where an arm has several seeds.
    """

    runs: tuple[ComparedRun, ...]
    corpora: tuple[str, ...]
    in_nats: bool
    gaps: tuple[Gap, ...]

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        """Return the runs by their settings, in the order in which they were given."""
        return group_arms(self.runs)

    @property
    def is_seeded(self) -> bool:
        """Return whether an arm has several seeds, so that means and intervals are compared."""
        return len(self.arms) < len(self.runs)

    @property
    def unit(self) -> str:
        """Return the unit of losses."""
        return "nats per token" if self.in_nats else "bits per byte"

    @cached_property
    def groups(self) -> list[list[SeededModel]]:
        """Return the models at the runs' beginning and end, those of equal cost together."""
        measured = {*self.corpora}
        bases = [base for arm in self.arms for base in arm.bases]
        models = [base for base in bases if _have(base, measured)]
        models += [model for arm in self.arms for model in arm.finals]
        by_first = {id(model.first): model for model in models}
        return [
            [by_first[id(first)] for first in group]
            for group in groups([model.first for model in models])
        ]

    @cached_property
    def seed_gaps(self) -> tuple[SeededGap, ...]:
        """Return the gaps of the first arm's final models to others of equal cost, by seed."""
        if not self.is_seeded:
            return ()
        first, *others = self.arms
        pairs = [
            gap_by_seed(ours, theirs, self.corpora, self.in_nats)
            for ours in first.finals
            for arm in others
            for theirs in arm.finals
            if equal(ours.first, theirs.first)
        ]
        return tuple(pair for pair in pairs if pair is not None)

    @cached_property
    def transfers(self) -> list[TransferRow]:
        """Return transfer and regret over time steps, as TiC-LM states them."""
        return transfer_rows(self.arms, self.corpora if self.in_nats else ())

    @property
    def tasks(self) -> dict[str, dict[str, str]]:
        """Return the scores of each arm's last model, by task and metric, where there is one.

        Those of the base that the arms start from are beside them, once where they are the same.

        ± is one standard error over items, or the 95% interval over seeds where an arm has several.
        """
        texts: dict[str, dict[str, str]] = {}
        for name, model in self.scored.items():
            for task, text in self._scores(model).items():
                texts.setdefault(task, {})[name] = text
        return texts

    @cached_property
    def scored(self) -> dict[str, SeededModel]:
        """Return the models whose scores are compared: bases, and the last one of each arm."""
        bases = {arm.name: arm.bases[0] for arm in self.arms if arm.bases}
        bases = {name: base for name, base in bases.items() if self._scores(base)}
        if len({str(self._scores(base)) for base in bases.values()}) == 1:
            bases = {"": next(iter(bases.values()))}
        # No run has such a name.
        titled = {f"the base of {name}".removesuffix(" of "): base for name, base in bases.items()}
        return titled | {arm.name: arm.last for arm in self.arms}

    def _scores(self, model: SeededModel) -> dict[str, str]:
        """Return a model's scores by task and metric."""
        scored: dict[str, list[Mapping[str, Any]]] = {}
        for its in model.by_seed.values():
            for score in its.scores:
                if "value" in score:
                    scored.setdefault(f"{score['task']} {score['metric']}", []).append(score)
        texts = {}
        for task, scores in scored.items():
            mean = estimate([score["value"] for score in scores])
            stderr = None if self.is_seeded else scores[0]["stderr"]
            plain = mean.text() if stderr is None else f"{mean.mean:.3f} ± {stderr:.3f}"
            texts[task] = plain
        return texts

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {
            "unit": self.unit,
            "corpora": list(self.corpora),
            "runs": [_plain(run, self) for run in self.runs],
            "gaps": [gap.to_dict() for gap in self.gaps],
            "arms": [
                {
                    "arm": arm.name,
                    "runs": {str(seed): run.name for seed, run in arm.runs.items()},
                    "models": [_plain_model(model, self) for model in arm.finals],
                }
                for arm in self.arms
            ],
            "seed_gaps": [
                {
                    "arm": gap.ours.arm,
                    "model": gap.ours.first.name,
                    "against": {"arm": gap.theirs.arm, "model": gap.theirs.first.name},
                    **asdict(gap.difference),
                }
                for gap in self.seed_gaps
            ],
            "transfer": [
                {"arm": row.arm, "models": row.models, "against": row.against}
                | {name: _plain_mean(row, name) for name in MEANS}
                for row in self.transfers
            ],
        }


def _have(model: SeededModel, corpora: set[str]) -> bool:
    return all(corpora <= its.losses.keys() for its in model.by_seed.values())


def _plain_model(model: SeededModel, comparison: Comparison) -> dict[str, Any]:
    losses = mean_losses(model, comparison.corpora, comparison.in_nats)
    first = model.first
    plain = {"model": first.name, "rate": first.rate, "tokens": first.tokens}
    return plain | {"seeds": [*model.by_seed], "losses": None if losses is None else asdict(losses)}


def _plain_mean(row: TransferRow, name: str) -> dict[str, Any]:
    mean = row.mean(name)
    cells = {str(seed): asdict(getattr(means, name)) for seed, means in row.by_seed.items()}
    return {"mean": None if mean is None else asdict(mean), "by_seed": cells}


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
    return {
        "run": run.name,
        "seed": run.spec.seed,
        "store": run.spec.store,
        "models": models,
        "compute": compute,
    }


def compare(works: Sequence[Workspace]) -> Comparison:
    """The runs of these workspaces side by side; reads alone.

    Raises InputError for a run without an evaluated stage, and for two runs in one store.
    """
    from perennial.planning.plan import model_flops

    runs: list[ComparedRun] = []
    labels = name_runs([work.spec for work in works])
    for work, label in zip(works, labels, strict=True):
        if work.store.url in [run.store.url for run in runs]:
            raise InputError(
                work.where,
                "store",
                "another of these runs has the same store",
                "name each once",
                code="store-twice",
            )
        read = read_run(work.spec, work.store, work.ledger.read(), label)
        if read is None:
            raise InputError(
                work.where,
                "",
                f"no stage of {work.spec.name} was evaluated yet in {work.store.url}",
                f"use `perennial run {work.where}`",
                code="nothing-evaluated",
            )
        runs.append(replace(read, flops_per_token=model_flops(work)))
    finals = [model for run in runs for model in run.final]
    corpora = common_corpora(finals)
    comparison = Comparison(tuple(runs), corpora, same_tokens(finals, corpora), ())
    if comparison.is_seeded or not comparison.in_nats:
        return comparison
    return replace(comparison, gaps=tuple(gaps_of(runs[0], runs[1:], corpora)))


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
    their_store = open_run_store(spec.evaluation.baseline)
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
