"""Beginning a search: from the tuning file and the trunk as it stands to a bench for its trials."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from perennial.config import AmountValue, RunSpec, stage_settings
from perennial.config.search import Point
from perennial.controller.context import Workspace
from perennial.controller.evaluate_stage import measure
from perennial.controller.ingest_stage import usable
from perennial.controller.loop import ingest_landed
from perennial.controller.ray_cluster import check_concurrent
from perennial.controller.replay_share import forecast_share
from perennial.errors import InputError
from perennial.evaluation.cache import kept_losses
from perennial.mixture import AUTO, truncate_mix
from perennial.runs.events import Searching
from perennial.runs.ledger import now
from perennial.runs.stage_planner import stage_steps
from perennial.runs.state import Corpus, RunState
from perennial.runs.trunk.containment import trained_corpora
from perennial.runs.unattended.replay_share import ShareDecision
from perennial.schedules import RateField, Schedule, ScheduleConfig, from_dict
from perennial.search.trials import Bench, check_objectives
from perennial.training.checkpoint.manifest import committed_steps, folder_of

if TYPE_CHECKING:
    from perennial.config.search import TuningSpec
    from perennial.training.checkpoint.ownership import Fence


@dataclass(frozen=True)
class PlannedSearch:
    """A search that can begin.

    here: the point that the run file itself is.
    rungs: steps of a trial after which trials are compared; the last is the whole budget.
    stage_steps: optimizer steps of the stage that is searched.
    """

    bench: Bench
    here: Point
    rungs: tuple[int, ...]
    stage_steps: int


def plan_search(
    work: Workspace, where: str, spec: TuningSpec, *, ingest: bool = True
) -> PlannedSearch:
    """Return a search that can begin; trains nothing.

    Args:
        work: the run.
        where: the tuning file, for errors.
        spec: its contents.
        ingest: tokenise what has landed and was not yet; without it nothing is written.

    Raises:
        InputError: a stage, corpus or objective does not exist, the checkpoint is not of the
            constant phase, the schedule has no such rate, or the budget is too small or too large.
    """
    rate = _rate(work.spec, where, spec)
    origin = _origin(work, where, spec)
    if ingest:
        ingest_landed(work)
    corpus = _corpus(work, where, spec, origin)
    _check_searchable(work.spec, where, spec, corpus, rate)
    origin = replace(origin, corpora=_without_replay_overrides(work.state))
    old = tuple(n for n in trained_corpora(origin, origin.stages[-1]) if n != corpus)
    check_objectives(where, spec.objectives, old)
    check_concurrent(where, work.spec.training, spec.concurrent)
    in_stage = stage_steps(work.spec, corpus, origin.corpora[corpus].sequences)
    rungs = _rungs(work.spec, where, spec, in_stage)
    bench = Bench(
        where=where,
        search=spec.name,
        spec=_pinned(work.spec, origin),
        origin=origin,
        corpus=corpus,
        old=old,
        rate=rate,
        steps=rungs[-1],
        objectives=spec.objectives,
        manifests=work.manifests(),
        before={},
    )
    schedule = stage_settings(work.spec, corpus).schedule
    here = Point(
        eta=schedule.searched_rate,
        replay=_share(work, origin, corpus),
        weighting=work.spec.replay.weighting,
    )
    _check_warmup(bench, where, here, rungs)
    return PlannedSearch(bench, here, rungs, in_stage)


def _share(work: Workspace, origin: RunState, corpus: str) -> float:
    """Return the replay share of the stage, as far as it can be known before it begins."""
    share = stage_settings(work.spec, corpus).replay.share
    if share != AUTO:
        return share
    auto = forecast_share(work, origin, (corpus,))
    return auto.share if isinstance(auto, ShareDecision) else auto or 0.0


def begin(work: Workspace, spec: TuningSpec, search: PlannedSearch) -> Bench:
    """Claim the search in the ledger, and measure where it begins.

    Args:
        work: the run.
        spec: the tuning file.
        search: the planned search.

    Returns:
        The bench of this claim; processes with an earlier claim stop.
    """
    bench = search.bench
    before = _before(work, bench)
    claim, fence = claim_search(work, spec, bench.corpus, bench.source)
    return replace(bench, before=before, claim=claim, fence=fence)


def claim_search(work: Workspace, spec: TuningSpec, corpus: str, source: str) -> tuple[int, Fence]:
    """Claim a search in the ledger; processes with an earlier claim stop.

    Args:
        work: the run.
        spec: the tuning file.
        corpus: that the trials train.
        source: key of the checkpoint that they branch off.

    Returns:
        The number of the claim, and the fence of those who train under it.
    """

    def claim(state: RunState) -> Searching:
        last = state.searches.claims.get(spec.name)
        return Searching(
            at=now(),
            name=spec.name,
            corpus=corpus,
            source=source,
            spec=spec.model_dump(mode="json"),
            claim=last.claim + 1 if last else 1,
        )

    claimed = work.ledger.transact(claim)
    assert claimed is not None
    return claimed.claim, work.ledger.fence(claimed.kind, spec.name)


def _before(work: Workspace, bench: Bench) -> dict[str, float]:
    """Return the loss on the old corpora where every trial begins, measured where it was not."""
    documents = {corpus: kept_losses(work.store, bench.source, corpus) for corpus in bench.old}
    missing = [corpus for corpus, kept in documents.items() if kept is None]
    if missing:
        measure(work, bench.source, missing)
        documents |= {corpus: kept_losses(work.store, bench.source, corpus) for corpus in missing}
    return {
        corpus: sum(loss.nats for loss in kept) / sum(loss.tokens for loss in kept)
        for corpus, kept in documents.items()
        if kept
    }


def _rate(run: RunSpec, where: str, spec: TuningSpec) -> RateField:
    """Return the schedule's key that is searched, or would be."""
    rate, kind = run.schedule.rate_field, run.schedule.kind
    if rate is None:
        raise InputError(
            where,
            "run",
            f"the schedule {kind} has no rate that can be searched",
            "give another run's file",
            code="rate-not-searchable",
        )
    other = "eta_max" if rate == "eta_const" else "eta_const"
    if getattr(spec, other) is not None:
        raise InputError(
            where,
            other,
            f"a search under the schedule {kind} varies {rate}",
            f"give {rate}, or another run's file",
            code="rate-not-searchable",
        )
    return rate


def _check_searchable(
    run: RunSpec, where: str, spec: TuningSpec, corpus: str, rate: RateField
) -> None:
    """Refuse to vary a rate that the run file fixes for the stage alone."""
    own = run.stages.corpora.get(corpus)
    if spec.rate and own and own.schedule and own.schedule.eta_max is not None:
        raise InputError(
            where,
            rate,
            f"stages.corpora.{corpus}.schedule.eta_max of the run file fixes it for this stage",
            f"remove it there, or leave {rate} out",
            code="rate-fixed-for-stage",
        )


def _origin(work: Workspace, where: str, spec: TuningSpec) -> RunState:
    """Return the run as it was at the checkpoint of the search, as the end of its last stage."""
    state = work.state
    names = [stage.name for stage in state.stages if stage.name in state.ends]
    if not names:
        raise InputError(
            where,
            "run",
            "the trunk has no finished stage",
            "use `perennial run`",
            code="nothing-trained",
        )
    name, _, at = (spec.after or names[-1]).partition("@")
    if name not in names:
        raise InputError(
            where,
            "after",
            f"{name!r} is not a finished stage",
            f"give one of {', '.join(names)}",
            code="stage-missing",
        )
    stages = list(state.stages[: names.index(name) + 1])
    last = stages[-1]
    steps = committed_steps(work.store, last.folder)
    if at and at not in map(str, steps):
        there = ", ".join(f"{name}@{step}" for step in steps)
        raise InputError(
            where,
            "after",
            f"there is no checkpoint {spec.after}",
            f"give one of {there}",
            code="checkpoint-missing",
        )
    step = int(at) if at else last.last_step
    trunk, whole = from_dict(last.schedule).installed(), step == last.last_step
    check_constant(where, work.spec.schedule, trunk, f"{name}@{step}", step, whole=whole)
    if step < last.last_step:
        stages[-1] = last.with_mix(truncate_mix(last.mix, step - last.first_step))
    ends = state.ends | {name: folder_of(last.folder, step)}
    return replace(state, stages=stages, ends=ends, abandoned=[])


def check_constant(
    where: str,
    config: ScheduleConfig,
    trunk: Schedule,
    checkpoint: str,
    step: int,
    *,
    whole: bool,
) -> None:
    """Refuse a checkpoint at which the trunk is neither at its constant rate nor fully decayed.

    Args:
        where: the tuning file, for errors.
        config: the run's schedule.
        trunk: curve that the checkpoint was trained under.
        checkpoint: name of the checkpoint in the error.
        step: its trunk step.
        whole: the checkpoint is the end of its stage.

    Raises:
        InputError: trials cannot branch off there.
    """
    if trunk.spans_trunk:
        phase = trunk.phase(step + 1)
        if phase != "constant":
            raise InputError(
                where,
                "after",
                f"{checkpoint} is of the {phase} phase, and trials branch off the constant one",
                "give a later step, or the stage's end",
                code="phase-not-constant",
            )
    elif config.spans_trunk or not whole:
        raise InputError(
            where,
            "after",
            f"{checkpoint} is of the {trunk.phase(step - 1)} phase of a {trunk.kind} schedule, "
            "which has no constant one to branch from",
            "search a trunk with an infinite schedule, or eta_max from the end of a whole stage",
            code="phase-not-constant",
        )


def _pinned(run: RunSpec, origin: RunState) -> RunSpec:
    """Return the run with its phases in steps, which a first stage that is cut does not change."""
    trunk = from_dict(origin.stages[0].schedule)
    return run.model_copy(update={"schedule": run.schedule.pinned(trunk)})


def _without_replay_overrides(state: RunState) -> dict[str, Corpus]:
    """Return the corpora without the replay shares of users: a trial has its point's."""
    return {name: replace(corpus, replay=None) for name, corpus in state.corpora.items()}


def _corpus(work: Workspace, where: str, spec: TuningSpec, origin: RunState) -> str:
    trained = {name for stage in origin.stages for name in stage.corpora}
    ready = [name for name in usable(work.state) if name not in trained]
    if spec.corpus is None and ready:
        return ready[0]
    if spec.corpus is not None and spec.corpus in ready:
        return spec.corpus
    raise InputError(
        where,
        "corpus",
        f"{spec.corpus or 'no corpus'} is there that {origin.stages[-1].name} has not trained",
        "land one with `perennial land`, and tokenise it with `perennial ingest`"
        + (f", or give {', '.join(ready)}" if ready else ""),
        code="corpus-missing",
    )


def _rungs(run: RunSpec, where: str, spec: TuningSpec, in_stage: int) -> tuple[int, ...]:
    assert spec.budget is not None  # the schema: a search for settings has one
    budget = _steps(run, where, "budget", spec.budget, in_stage)
    if budget > in_stage:
        raise InputError(
            where,
            "budget",
            f"{spec.budget} is {budget:,} steps, and the stage itself has {in_stage:,}",
            "give at most 100%",
            code="budget-too-large",
        )
    if spec.halving is None:
        return (budget,)
    rung = _steps(run, where, "halving.first", spec.halving.first, in_stage)
    if rung >= budget:
        raise InputError(
            where,
            "halving.first",
            f"{spec.halving.first} is {rung:,} steps, and the budget only {budget:,}",
            "give less than the budget",
            code="budget-too-large",
        )
    rungs = []
    while rung < budget:
        rungs.append(rung)
        rung *= spec.halving.factor
    return (*rungs, budget)


def _steps(run: RunSpec, where: str, field: str, amount: AmountValue, in_stage: int) -> int:
    steps = amount.steps(in_stage, run.tokens_per_step)
    if steps < 1:
        raise InputError(
            where,
            field,
            f"{amount} is less than one step of {run.tokens_per_step:,} tokens",
            "give at least one step",
            code="budget-too-small",
        )
    return steps


def _check_warmup(bench: Bench, where: str, here: Point, rungs: tuple[int, ...]) -> None:
    """Refuse trials that never leave their warmup: they do not measure the rate that they reach."""
    schedule = stage_settings(bench.spec, bench.corpus).schedule
    in_stage = bench.origin.stages[0].mix.steps if bench.is_whole else rungs[-1]
    warmup = schedule.warmup_steps(in_stage, bench.spec.tokens_per_step)
    if rungs[0] <= warmup:
        raise InputError(
            where,
            "budget" if len(rungs) == 1 else "halving.first",
            f"{rungs[0]:,} steps are not more than the {warmup:,} of the warmup",
            f"give more than {warmup:,} steps",
            code="budget-too-small",
        )
    bench.branched(here)  # whatever else cannot be is known before anything is trained
