"""The trials of a search: branches off one trunk checkpoint, trained and measured.

A trial is the beginning of the stage that `run` would train with the trial's fragment in its run
file: the same plan, schedule and optimizer, ended early. So what a trial has trained can become the
stage's own beginning (`perennial.controller.reuse_trial`). The trials of a cosine or wsd run are
the whole stage made short, because half of a decay measures nothing; they cannot be continued.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar

from perennial.config import RunSpec, parse, parse_amount, stage_settings
from perennial.config.deepspeed_overrides import merge_settings
from perennial.config.search import Point
from perennial.errors import InputError
from perennial.mixture import mixture_suffix, truncate_mix
from perennial.runs.events import Branched
from perennial.runs.job_factory import branch_job, stage_job, tokenizer_folder
from perennial.runs.ledger import now
from perennial.runs.search_state import shifted, trial_stage
from perennial.runs.stage_planner import anneal_mix, decide_stage
from perennial.runs.state import RunState, Stage
from perennial.schedules import from_dict, release_anneal
from perennial.search.bench import TrialBench, no_progress
from perennial.training.checkpoint.manifest import folder_of

if TYPE_CHECKING:
    from perennial.corpora import CorpusManifest
    from perennial.training.checkpoint.ownership import Fence
    from perennial.training.job import Job

_ANNEALED = "anneal"


@dataclass(frozen=True)
class Bench(TrialBench[Point]):
    """Trains and measures the trials of one search; plain data, so that any process can.

    where: the tuning file, for errors.
    spec: the run as it is without a search.
    origin: the run as it was at the checkpoint that all branch off, the end of its last stage.
    corpus: whose stage is searched.
    old: corpora that the trunk knows.
    rate: the schedule's field that a point's `eta` is.
    steps: optimizer steps of a trial at most.
    objectives: names of the two values that are measured.
    before: held-out loss of the origin on the old corpora, nats per token.
    claim, fence: of this search; a process with a later claim takes it over.
    """

    where: str
    search: str
    spec: RunSpec
    origin: RunState
    corpus: str
    old: tuple[str, ...]
    rate: str
    steps: int
    objectives: tuple[str, ...]
    manifests: Mapping[str, CorpusManifest]
    before: Mapping[str, float]
    claim: int = 0
    fence: Fence | None = None
    remedy: ClassVar[str] = "leave such rates out of the space"

    @property
    def first_step(self) -> int:
        """Return the trunk step at which every trial begins."""
        return self.origin.stages[-1].last_step

    @property
    def measured(self) -> tuple[str, ...]:
        """Return the corpus of the stage, and those that the trunk knows."""
        return self.corpus, *self.old

    @property
    def source(self) -> str:
        """Return the key of the checkpoint that every trial begins with."""
        return self.origin.ends[self.origin.stages[-1].name]

    @property
    def is_whole(self) -> bool:
        """Return True where a trial is the beginning of the whole stage."""
        return self.spec.schedule.spans_trunk

    def run_spec(self, point: Point) -> RunSpec:
        """Return the run file with the point's fragment. Raises InputError when it is invalid."""
        fragment = point.fragment(self.corpus, self.rate)
        if not self.is_whole:
            fragment["stages"]["corpora"][self.corpus]["budget"] = f"{self.steps} steps"
        return parse(
            merge_settings(self.spec.model_dump(mode="json"), fragment), RunSpec, self.where
        )

    def branched(self, point: Point) -> Branched:
        """Return the trial of a point; only its time differs between two calls."""
        spec = self.run_spec(point)
        stage = decide_stage(spec, self.origin, self.corpus, now(), "", reschedule=True)
        mix = shifted(stage.mix, point.seed)
        identity = [self.source, mix.to_dict(), stage.schedule, stage.optimizer, point.anneal]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return Branched(
            at=now(),
            search=self.search,
            trial=f"tune-{self.search}-{point.name}-{digest[:6]}",
            corpus=self.corpus,
            point=point,
            stage=self.origin.stages[-1].name,
            step=self.first_step,
            source=self.source,
            mix=mix,
            schedule=stage.schedule,
            optimizer=stage.optimizer,
            settings=stage.settings,
        )

    def train(self, point: Point, decided: Branched, step: int) -> tuple[str, int]:
        """Train a trial to a trunk step, and anneal it where its point says so."""
        from perennial.training.launcher import run_job

        spec = self.run_spec(point)
        checkpoint = run_job(self.job(spec, decided, step), no_progress)
        anneal = self.anneal_job(spec, point, decided, step) if point.anneal else None
        if anneal is None:
            return checkpoint, 0
        return run_job(anneal, no_progress), anneal.mix.steps

    def values_of(self, nats: Mapping[str, float]) -> dict[str, float]:
        """Return the objectives by name."""
        return objective_values(self.objectives, nats, self.before, self.corpus, self.old)

    def job(self, spec: RunSpec, decided: Branched, until: int) -> Job:
        """Return the job that trains a trial to trunk step `until`."""
        job = stage_job(spec, self.origin, self._stage(decided), self.manifests, self.fence)
        folder = f"branches/{decided.trial}"
        return replace(job, name=decided.trial, folder=folder, until=until)

    def anneal_job(self, spec: RunSpec, point: Point, decided: Branched, step: int) -> Job | None:
        """Return the job that anneals a trial off trunk step `step`; None where it has decayed."""
        stage = self._stage(decided)
        amount = parse_amount(point.anneal)
        settings = spec.release.model_copy(update={"anneal": amount})
        schedule = from_dict(decided.schedule)
        end = stage_settings(spec, self.corpus).schedule.anneal_end
        eta = release_anneal(settings, end, schedule, step, spec.tokens_per_step)
        if eta is None:
            return None
        trained = [*self.origin.history, truncate_mix(stage.mix, step - self.first_step)]
        job = branch_job(
            spec,
            self._seen(stage, step),
            self.manifests,
            name=f"{decided.trial}-{step}-{_ANNEALED}{eta.steps}"
            + mixture_suffix(spec.release.mixture),
            mix=anneal_mix(spec.release.mixture, trained, eta.steps, self.origin),
            schedule=eta,
            first_step=step,
            start=folder_of(f"branches/{decided.trial}", step),
        )
        tokenizer = tokenizer_folder(self.origin.extension_of(stage))
        return replace(job, optimizer="keep", fence=self.fence, tokenizer=tokenizer)

    def _stage(self, decided: Branched) -> Stage:
        return trial_stage(decided, after=len(self.origin.stages))

    def _seen(self, stage: Stage, step: int) -> dict[str, int]:
        seen = self.origin.seen(stage, stage.first_step)
        for corpus, count in self.origin.trained(stage, step, {}).items():
            seen[corpus] = seen.get(corpus, 0) + count
        return seen


def objective_values(
    objectives: Sequence[str],
    nats: Mapping[str, float],
    before: Mapping[str, float],
    new: str,
    old: Sequence[str],
) -> dict[str, float]:
    """Return the objectives by name; less is better.

    Args:
        objectives: names of those that are wanted.
        nats: held-out loss after the trial by corpus, nats per token.
        before: the same where the trial began, for the old corpora.
        new: the corpus whose stage is searched.
        old: corpora that the trunk knows.
    """
    rises = {f"forgetting/{corpus}": nats[corpus] - before[corpus] for corpus in old}
    known = {"adaptation": nats[new], "forgetting": fmean(rises.values()), **rises}
    return {name: known[name] for name in objectives}


def known_objectives(old: Sequence[str]) -> list[str]:
    """Return the objectives of a search whose trunk knows the corpora `old`."""
    return ["adaptation", "forgetting", *(f"forgetting/{corpus}" for corpus in old)]


def check_objectives(where: str, objectives: Sequence[str], old: Sequence[str]) -> None:
    """Refuse an objective that the trunk has no corpus for."""
    known = known_objectives(old)
    for objective in objectives:
        if objective not in known:
            raise InputError(
                where,
                "objectives",
                f"there is no objective {objective!r}: the trunk has not trained that corpus",
                f"give two of {', '.join(known)}",
                code="objective-unknown",
            )
