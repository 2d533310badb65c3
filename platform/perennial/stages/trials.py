"""The trials of a search as training jobs: branches off one trunk checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from perennial.errors import InputError
from perennial.mixture import stage_mix
from perennial.schedules import ConstantSchedule
from perennial.stages.advance import ingest_landed
from perennial.stages.ingestion import usable
from perennial.stages.jobs import branch_job, replay_rule
from perennial.stages.machine import Stage
from perennial.stages.workspace import Workspace

if TYPE_CHECKING:
    from perennial.spec.tuning import TuningSpec
    from perennial.training.job import Job


@dataclass(frozen=True)
class Search:
    """What the trials share, and their jobs.

    start: the checkpoint that all branch off.
    new: the corpus whose held-out loss is the adaptation.
    old: corpora that the trunk knows; their mean rise in held-out loss is the forgetting.
    """

    start: str
    new: str
    old: tuple[str, ...]
    jobs: tuple[Job, ...]


def plan_search(work: Workspace, where: str, spec: TuningSpec) -> Search:
    """The jobs of a search; ingests what has landed and was not yet. InputError when it cannot be.

    Raises InputError for a stage or corpus that does not exist, a trunk that is not in its
    constant phase there, or a budget of less than one step.
    """
    stage = _stage(work, where, spec)
    corpus = _corpus(work, where, spec, stage)
    rows = work.state.corpora[corpus].sequences
    steps = spec.budget.steps(rows // work.spec.training.global_batch, work.spec.tokens_per_step)
    if steps < 1:
        raise InputError(
            where,
            "budget",
            f"{spec.budget} is less than one step of {work.spec.tokens_per_step} tokens",
            "give at least one step",
        )
    manifests = work.manifests()
    history = work.state.history[: work.state.stages.index(stage) + 1]
    seen = work.state.seen(stage, stage.last_step)
    batch = work.spec.training.global_batch
    jobs = tuple(
        branch_job(
            work.spec,
            seen,
            manifests,
            name=f"tune-{spec.name}-eta{eta:g}-replay{share:g}",
            mix=stage_mix(
                history, {corpus: rows}, steps, batch, replay_rule(work.spec, work.state, share)
            ),
            schedule=ConstantSchedule(eta),
            first_step=stage.last_step,
            start=work.state.ends[stage.name],
        )
        for eta in spec.eta_const
        for share in spec.replay
    )
    old = tuple(name for mix in history for name in mix.corpora if name != corpus)
    return Search(work.state.ends[stage.name], corpus, old, jobs)


def _stage(work: Workspace, where: str, spec: TuningSpec) -> Stage:
    finished = [stage for stage in work.state.stages if stage.name in work.state.ends]
    names = [stage.name for stage in finished]
    if not finished:
        raise InputError(where, "run", "the trunk has no finished stage", "use `perennial run`")
    if spec.after is not None and spec.after not in names:
        raise InputError(
            where, "after", f"{spec.after!r} is not a finished stage", f"give {', '.join(names)}"
        )
    stage = finished[-1] if spec.after is None else finished[names.index(spec.after)]
    if work.spec.schedule.kind not in ("infinite", "constant"):
        raise InputError(
            where,
            "run",
            f"its {work.spec.schedule.kind} schedule has no constant phase to branch from",
            "search on a trunk with an infinite schedule",
        )
    return stage


def _corpus(work: Workspace, where: str, spec: TuningSpec, stage: Stage) -> str:
    ingest_landed(work)
    until = work.state.stages[: work.state.stages.index(stage) + 1]
    trained = {name for each in until for name in each.corpora}
    ready = [name for name in usable(work.state) if name not in trained]
    if spec.corpus is None and ready:
        return ready[0]
    if spec.corpus in ready:
        assert spec.corpus is not None
        return spec.corpus
    raise InputError(
        where,
        "corpus",
        f"{spec.corpus or 'no corpus'} is there that {stage.name} has not trained",
        "land one with `perennial land`" + (f", or give {', '.join(ready)}" if ready else ""),
    )
