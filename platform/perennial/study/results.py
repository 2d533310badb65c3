"""Read the results of a study's runs, and decide its claims. Nothing here is kept: stores are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from perennial.evaluation.compare import Model, bill, common_corpora, same_tokens, value_of
from perennial.evaluation.statistics import (
    Estimate,
    Verdict,
    estimate,
    judge,
    paired_difference,
)
from perennial.report.compared_run import read_run
from perennial.runs import summary
from perennial.study.kept import Contender, KeptResult, write_kept
from perennial.study.plan import ArmRun, Study, decide, list_inbox, list_kept, read_state
from perennial.study.record import StudyRecord, read_record, read_spent
from perennial.study.service import RunEnding

if TYPE_CHECKING:
    from perennial.config.study import ClaimSpec
    from perennial.runs.state import RunState

AVERAGE = "average"


@dataclass(frozen=True)
class RunResult:
    """The models of one run of a study.

    contenders: by their names in the study.
    """

    run: ArmRun
    status: RunEnding
    contenders: Mapping[str, Contender]
    record: StudyRecord | None
    seconds: float


@dataclass(frozen=True)
class Judgement:
    """A claim, what was measured, over how many seeds, and whether it holds."""

    claim: ClaimSpec
    measured: Estimate | None
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        measured = None if self.measured is None else asdict(self.measured)
        claim = self.claim.model_dump(mode="json")
        return {"claim": claim, "measured": measured, "verdict": self.verdict}


@dataclass(frozen=True)
class StudyResults:
    """The results of a study as far as it is.

    corpora: those on which every contender was measured.
    in_nats: whether losses are in nats per token, or in bits per byte as tokenizers differ.
    """

    study: Study
    runs: tuple[RunResult, ...]
    corpora: tuple[str, ...]
    in_nats: bool
    judgements: tuple[Judgement, ...]

    @property
    def unit(self) -> str:
        """Return the unit of losses."""
        return "nats per token" if self.in_nats else "bits per byte"

    def by_seed(self, contender: str, measure: str) -> dict[int, float]:
        """Return a measure of a contender by seed, of the runs that are done."""
        return _by_seed(self.runs, self.corpora, self.in_nats, contender, measure)

    def estimate(self, contender: str, measure: str) -> Estimate | None:
        """Return a measure of a contender over its seeds; None where nothing was measured."""
        values = self.by_seed(contender, measure)
        return estimate(list(values.values())) if values else None

    @property
    def digests(self) -> list[str]:
        """Return the digests of the study under which runs were begun, without repeats."""
        return list(dict.fromkeys(r.record.digest for r in self.runs if r.record is not None))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        measures = [AVERAGE, *(f"loss/{corpus}" for corpus in self.corpora)]
        return {
            "study": self.study.spec.name,
            "digest": self.study.digest,
            "unit": self.unit,
            "runs": [
                {
                    "run": result.run.name,
                    "store": result.run.spec.store,
                    "state": result.status.state,
                    "reason": result.status.reason,
                    "seconds": result.seconds,
                    "digest": result.record.digest if result.record else None,
                }
                for result in self.runs
            ],
            "results": {
                name: {measure: self.by_seed(name, measure) for measure in measures}
                for name in self.study.spec.contenders
            },
            "claims": [judgement.to_dict() for judgement in self.judgements],
        }


def read_results(study: Study, statuses: Mapping[str, RunEnding]) -> StudyResults:
    """Return the results of the runs that are done.

    Args:
        study: the study.
        statuses: how every run ended, by its name.
    """
    kept = list_kept(study, list_inbox(study))
    runs = tuple(_read_run(run, statuses[run.name], kept.get(run.name)) for run in study.runs)
    corpora, in_nats = _comparable(runs)

    def by_seed(contender: str, measure: str) -> dict[int, float]:
        return _by_seed(runs, corpora, in_nats, contender, measure)

    judgements = tuple(judge_claim(claim, by_seed) for claim in study.spec.claims)
    return StudyResults(study, runs, corpora, in_nats, judgements)


def keep_results(results: StudyResults) -> None:
    """Write what runs came to into the file that the study names for it, if it names one."""
    path = results.study.spec.results
    if path is None:
        return
    inbox = list_inbox(results.study)
    done = {
        its.run.name: KeptResult(
            results.study.identity_of(its.run, inbox), its.record, its.seconds, its.contenders
        )
        for its in results.runs
        if its.status.state == "done" and its.record is not None
    }
    write_kept(path, done)


def judge_claim(claim: ClaimSpec, by_seed: Callable[[str, str], Mapping[int, float]]) -> Judgement:
    """Return whether a claim holds. Pure.

    Args:
        claim: the claim.
        by_seed: returns a measure of a contender by seed.
    """
    ours = by_seed(claim.arm, claim.measure)
    if claim.against is not None:
        measured = paired_difference(ours, by_seed(claim.against, claim.measure))
    else:
        measured = estimate(list(ours.values())) if ours else None
    low, high = claim.bounds
    return Judgement(claim, measured, judge(measured, low, high))


def _read_run(run: ArmRun, status: RunEnding, kept: KeptResult | None) -> RunResult:
    if kept is not None:
        return RunResult(run, status, kept.contenders, kept.record, kept.seconds)
    record, seconds = read_record(run.store), read_spent(run.store)
    if status.state != "done":
        return RunResult(run, status, {}, record, seconds)
    return RunResult(run, status, _contenders(run, read_state(run)), record, seconds)


def _contenders(run: ArmRun, state: RunState) -> dict[str, Contender]:
    read = read_run(run.spec, run.store, state)
    assert read is not None, "a run that is done has measured stages"
    models = {model.name: model for model in read.models}
    last = state.stages[-1].name
    names = {run.arm: last}
    for asked in run.releases:
        release = decide(state, asked)
        assert release is not None, "a run that is done has its releases"
        names[f"{run.arm}/{asked.name}"] = release.name
    matrix = summary.matrix(state)
    own: dict[str, float] = {}
    for index in range(len(matrix.stages)):
        for corpus in matrix.own(index):
            nats = matrix.nats(index, corpus)
            if nats is not None:
                own[corpus] = nats
    stages = [(s.name, s.mix.steps * run.spec.tokens_per_step) for s in state.stages]
    return {
        name: Contender(models[model], own, _saved(stages, models[model], last))
        for name, model in names.items()
    }


def _saved(stages: Sequence[tuple[str, int]], model: Model, last: str) -> float:
    anneal = max(0, model.tokens - sum(tokens for _, tokens in stages))
    return bill(stages, {last: anneal}).saved


def _comparable(runs: Sequence[RunResult]) -> tuple[tuple[str, ...], bool]:
    """Return the corpora that all models were measured on, and whether their tokens are the same.

    Runs of one seed have the same held-out documents; those of another have others.
    """
    corpora: tuple[str, ...] | None = None
    in_nats = True
    for seed in dict.fromkeys(result.run.seed for result in runs):
        models = [
            contender.model
            for result in runs
            if result.run.seed == seed
            for contender in result.contenders.values()
        ]
        if not models:
            continue
        common = common_corpora(models)
        in_nats = in_nats and same_tokens(models, common)
        corpora = tuple(c for c in common if corpora is None or c in corpora)
    return corpora or (), in_nats


def _by_seed(
    runs: Sequence[RunResult],
    corpora: Sequence[str],
    in_nats: bool,
    contender: str,
    measure: str,
) -> dict[int, float]:
    values = {}
    for result in runs:
        its = result.contenders.get(contender)
        value = None if its is None else _value(its, corpora, in_nats, measure)
        if value is not None:
            values[result.run.seed] = value
    return values


def _value(
    contender: Contender, corpora: Sequence[str], in_nats: bool, measure: str
) -> float | None:
    if measure == "saved":
        return contender.saved
    losses = contender.model.losses
    if measure == AVERAGE:
        return fmean(value_of(losses[name], in_nats) for name in corpora) if corpora else None
    kind, _, corpus = measure.partition("/")
    if corpus not in corpora:
        return None
    if kind == "loss":
        return value_of(losses[corpus], in_nats)
    before = contender.own.get(corpus)
    return None if before is None else losses[corpus].nats_per_token - before
