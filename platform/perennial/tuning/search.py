"""Ray Tune runs the trials: each trains its branch, measures it, and reports two objectives."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perennial.evaluation import measure, pareto_front
from perennial.training.job import Job

if TYPE_CHECKING:
    from perennial.store import Store

_DRIVER_CPUS = 0.01
"""A trial's driver only waits for its workers, but Ray Tune wants a resource for it."""


@dataclass(frozen=True)
class Point:
    """One finished trial.

    adaptation: held-out loss on the new corpus, nats per token.
    forgetting: mean rise of the held-out loss on the old corpora, nats per token.
    on_front: whether no other trial is at least as good in both and better in one.
    """

    name: str
    eta: float
    replay: float
    adaptation: float
    forgetting: float
    checkpoint: str
    on_front: bool


@dataclass(frozen=True)
class Objectives:
    """How a trial is judged: corpora, held-out documents of each, and the losses before it."""

    new: str
    old: tuple[str, ...]
    documents: int
    before: Mapping[str, float]


def losses_before(
    store: Store, start: str, old: Sequence[str], sequence_length: int, documents: int
) -> dict[str, float]:
    """Held-out loss of the common start on the old corpora, nats per token."""
    found = measure(store, start, old, sequence_length, documents)
    return {corpus: loss.nats_per_token for corpus, loss in found.items()}


def search(
    store: Store, jobs: Sequence[Job], objectives: Objectives, concurrent: int
) -> list[Point]:
    """Run every job as a trial; the points in the jobs' order. Ray must be initialised.

    Raises RuntimeError naming the trial when one failed.
    """
    from ray import tune

    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="perennial-tune-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_trial, store=store, jobs=list(jobs), objectives=objectives),
                {"CPU": _DRIVER_CPUS},
            ),
            param_space={"index": tune.grid_search(list(range(len(jobs))))},
            tune_config=tune.TuneConfig(max_concurrent_trials=concurrent),
            run_config=tune.RunConfig(name="search", storage_path=scratch, verbose=0),
        )
        results = tuner.fit()
    found: dict[int, dict[str, Any]] = {}
    for result in results:
        if result.error or result.metrics is None:
            raise RuntimeError(f"a trial failed: {result.error}")
        found[result.config["index"]] = result.metrics
    values = [(found[i]["adaptation"], found[i]["forgetting"]) for i in range(len(jobs))]
    front = set(pareto_front(values))
    return [
        Point(
            name=job.name,
            eta=job.eta(job.first_step),
            replay=_replay_share(job),
            adaptation=values[i][0],
            forgetting=values[i][1],
            checkpoint=found[i]["checkpoint"],
            on_front=i in front,
        )
        for i, job in enumerate(jobs)
    ]


def _trial(
    config: dict[str, Any], *, store: Store, jobs: list[Job], objectives: Objectives
) -> None:
    from ray import tune

    from perennial.training.trainer import run_job

    job = jobs[config["index"]]
    checkpoint = run_job(job, lambda progress: None)
    corpora = (objectives.new, *objectives.old)
    losses = measure(store, checkpoint, corpora, job.sequence_length, objectives.documents)
    rises = [losses[c].nats_per_token - objectives.before[c] for c in objectives.old]
    tune.report(
        {
            "adaptation": losses[objectives.new].nats_per_token,
            "forgetting": sum(rises) / len(rises) if rises else 0.0,
            "checkpoint": checkpoint,
        }
    )


def _replay_share(job: Job) -> float:
    new = job.mix.sources[0].sequences
    return 1 - new / (job.mix.steps * job.mix.global_batch)
