"""The trials of an Inheritune search: models of the reference's first layers, trained as it was.

Algorithm 1 of arXiv 2404.08634: a child inherits the first n of k layers, embeddings, final norm
and head, and is trained for as long as the reference was; while its loss is above the reference's,
n grows. A child is a branch that begins at the first step of the trunk, with weights of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar

from perennial.config import RunSpec, stage_settings
from perennial.config.search import Child
from perennial.runs.events import Branched
from perennial.runs.job_factory import stage_job
from perennial.runs.ledger import now
from perennial.runs.search_state import child_mix, start_key, trial_stage
from perennial.runs.state import RunState, Stage
from perennial.schedules import build_curve, to_dict
from perennial.search.bench import TrialBench, no_progress
from perennial.store import open_run_store
from perennial.training.checkpoint.manifest import folder_of

if TYPE_CHECKING:
    from perennial.config.search import InherituneSpec
    from perennial.corpora import CorpusManifest
    from perennial.training.checkpoint.ownership import Fence
    from perennial.training.job import Job
    from perennial.training.model.child import ChildStart

OBJECTIVES = ("loss", "above")
"""held-out loss, the mean over the reference's corpora, and what it is above the reference's"""


@dataclass(frozen=True)
class ChildBench(TrialBench[Child]):
    """Trains and measures the children of one reference; plain data, so that any process can.

    where: the tuning file, for errors.
    spec: the run as it is without a search.
    origin: the run as it was at the end of its first stage, which trained the reference.
    depth: layers of the reference.
    layers: of the first child, and by how many the next one is larger.
    reference_loss: of the reference, the mean over its corpora; nats per token.
    claim, fence: of this search; a process with a later claim takes it over.
    """

    where: str
    search: str
    spec: RunSpec
    origin: RunState
    depth: int
    layers: tuple[int, int]
    manifests: Mapping[str, CorpusManifest]
    reference_loss: float = 0.0
    claim: int = 0
    fence: Fence | None = None
    remedy: ClassVar[str] = "train the reference at a lower rate, in a run of its own"

    @property
    def reference(self) -> Stage:
        """Return the stage that trained the reference."""
        return self.origin.stages[0]

    @property
    def source(self) -> str:
        """Return the key of the reference's checkpoint."""
        return self.origin.ends[self.reference.name]

    @property
    def first_step(self) -> int:
        """Return the trunk step at which the reference began, as every child does."""
        return self.reference.first_step

    @property
    def measured(self) -> tuple[str, ...]:
        """Return the reference's corpora."""
        return self.reference.corpora

    def values_of(self, nats: Mapping[str, float]) -> dict[str, float]:
        """Return the loss, and what it is above the reference's."""
        loss = fmean(nats.values())
        return dict(zip(OBJECTIVES, (loss, loss - self.reference_loss), strict=True))

    def steps_of(self, child: Child) -> int:
        """Return the optimizer steps that a child is trained for."""
        return child_mix(self.reference.mix, child, self.spec.corpora.sequence_length).steps

    def branched(self, point: Child) -> Branched:
        """Return the trial of a child; only its time differs between two calls."""
        stage, length = self.reference, self.spec.corpora.sequence_length
        mix = child_mix(stage.mix, point, length)
        schedule = stage.schedule
        if point.subset:
            its = stage_settings(self.spec, stage.corpora[0]).schedule
            curve = build_curve(its, 0, mix.steps, self.spec.tokens_per_step)
            schedule = to_dict(curve)
        source = self._grown_from(point) or self.source
        identity = [source, point.layers, point.init, mix.to_dict(), schedule]
        identity += [self.spec.seed, self.spec.model.init] if point.init == "random" else []
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return Branched(
            at=now(),
            search=self.search,
            trial=f"tune-{self.search}-{point.name}-{digest[:6]}",
            corpus=stage.corpora[0],
            point=point,
            stage=stage.name,
            step=self.first_step,
            source=source,
            mix=mix,
            schedule=schedule,
            optimizer="reset",
            settings=stage.settings,
        )

    def train(self, point: Child, decided: Branched, step: int) -> tuple[str, int]:
        """Train a child to a trunk step; its weights are made where they are not there yet."""
        from perennial.training.launcher import run_job
        from perennial.training.model.child import write_child

        job = self.job(decided, step)
        assert job.start is not None
        write_child(open_run_store(self.spec.store), job.start, self.start_of(point), job.name)
        return run_job(job, no_progress), 0

    def job(self, decided: Branched, until: int) -> Job:
        """Return the job that trains a child to trunk step `until`."""
        stage = trial_stage(decided, after=0)
        job = stage_job(self.spec, self.origin, stage, self.manifests, self.fence)
        return replace(
            job,
            name=decided.trial,
            folder=f"branches/{decided.trial}",
            start=start_key(decided),
            until=until,
            grown_from=None,  # its reference has the rows of a vocabulary that grew
        )

    def start_of(self, point: Child) -> ChildStart:
        """Return what a child begins with."""
        from perennial.training.model.child import ChildStart

        is_random = point.init == "random"
        return ChildStart(
            point.layers,
            self.source,
            self._grown_from(point),
            self.spec.seed + point.seed if is_random else None,
            self.spec.model.init,
        )

    def _grown_from(self, point: Child) -> str | None:
        """Return the key of the smaller child's checkpoint, of a child that was grown from one."""
        if point.init != "grown":
            return None
        first, by = self.layers
        layers = point.layers - by
        smaller = replace(point, layers=layers, init="inherited" if layers == first else "grown")
        trial = self.branched(smaller).trial
        return folder_of(f"branches/{trial}", self.first_step + self.steps_of(smaller))


def children_of(spec: InherituneSpec, layers: int, first: int) -> list[Child]:
    """Return the children of a size: the one that is searched first, then its random twin.

    Args:
        spec: the section of the tuning file.
        layers: of the children.
        first: layers of the first child of the search.
    """
    subset = {"subset": str(spec.subset or ""), "epochs": spec.epochs or 0}
    grows = spec.grow_from == "child" and layers > first
    searched = Child(layers, "grown" if grows else "inherited", **subset)  # type: ignore[arg-type]
    return [searched, replace(searched, init="random")] if spec.random else [searched]


def next_layers(tried: Mapping[int, float], sizes: list[int], margin: float) -> int | None:
    """Return the size of the next child; None once one is at parity, or all were tried.

    Args:
        tried: how far the loss of each child lies above the reference's, by its layers.
        sizes: layers of the children, in the order in which they are tried.
        margin: by which one at parity may lie above.
    """
    for layers in sizes:
        if layers not in tried:
            return layers
        if tried[layers] <= margin:
            return None
    return None
