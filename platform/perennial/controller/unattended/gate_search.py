"""Answer a broken gate: train a trial of a search, or take the stage off the trunk.

A trial is the stage again at another point, a branch off the checkpoint from which the stage began.
It is trained under the controller's charge, and goes on from its last checkpoint after a kill; the
one that is taken has the stage's own plan, so that the stage adopts it (`controller.reuse_trial`).
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

from perennial.controller.evaluate_stage import gains_at, measure
from perennial.controller.train_stage import train
from perennial.evaluation.finite import split_finite
from perennial.evaluation.gates import Measurements, Verdict
from perennial.evaluation.gates import judge as judge_gates
from perennial.runs import summary
from perennial.runs.events import Retried, Searching, Tried
from perennial.runs.job_factory import stage_job
from perennial.runs.ledger import now
from perennial.runs.search_state import Trial, trial_stage
from perennial.runs.unattended.gate_response import GateResponse, respond_to_gate
from perennial.runs.unattended.gate_search import branch_trial, describe_broken

if TYPE_CHECKING:
    from perennial.controller.context import Workspace
    from perennial.evaluation.loss import HeldoutLoss
    from perennial.runs.state import Stage


def leave_for_another_try(work: Workspace) -> None:
    """Take the stage that a gate stopped off the trunk, to train it again at another point."""
    response = _response(work)
    retried = Retried(
        at=now(),
        corpus=response.corpus,
        by_person=False,
        replay=response.replay,
        reason=response.reason,
        search=response.search,
        rate=response.rate,
    )
    work.decide(retried)
    work.log(f"{response.corpus}: {response.describe()}")


def train_trial(work: Workspace, reschedule: bool) -> None:
    """Train the next trial of the search for the stage that a gate stopped, and measure it.

    Args:
        work: the run.
        reschedule: accept another schedule than the trunk's.
    """
    response, stage = _response(work), work.state.gated
    assert stage is not None
    if response.search not in work.state.searches.claims:
        work.decide(_begun(work, response, stage))
    trial = _unfinished(work, response.search)
    if trial is None:
        branched = branch_trial(work.spec, work.state, now(), reschedule=reschedule)
        work.decide(branched)
        trial = work.state.searches.trials[branched.trial]
    work.log(f"{response.search}: {response.describe()}")
    as_stage = trial_stage(trial.branched, stage.after)
    work.use_ray()
    job = stage_job(work.spec, work.state, as_stage, work.manifests(as_stage.mix), work.fence())
    end = train(work, replace(job, folder=trial.folder))
    _record(work, trial, stage, end)


def _response(work: Workspace) -> GateResponse:
    response = respond_to_gate(work.spec, work.state)
    assert response is not None
    assert response.replay is not None
    return response


def _begun(work: Workspace, response: GateResponse, stage: Stage) -> Searching:
    """Return the beginning of a search, with its bounds and the reason."""
    assert stage.start is not None
    gates, most = work.spec.gates, work.spec.limits.search_tokens
    broken = [verdict for verdict in work.state.verdicts[stage.name] if not verdict.holds]
    return Searching(
        at=now(),
        name=response.search,
        corpus=response.corpus,
        source=stage.start,
        spec={
            "stage": stage.name,
            "max_trials": gates.max_trials,
            "search_tokens": str(gates.search_tokens),
            "limits.search_tokens": None if most is None else str(most),
            "reason": ", ".join(map(describe_broken, broken)),
        },
        claim=1,
    )


def _unfinished(work: Workspace, search: str) -> Trial | None:
    trials = work.state.searches.of(search).values()
    return next((trial for trial in trials if not trial.tried), None)


def _record(work: Workspace, trial: Trial, stage: Stage, end: str) -> None:
    """Measure a trial's end on what the stage was measured on, and record how it stands."""
    state = work.state
    references = summary.references(state, stage)
    known = {name: key for name, key in references.items() if name not in stage.corpora}
    asked = [*state.losses[stage.name], *state.not_finite.get(stage.name, ())]
    kept, lost = split_finite(measure(work, end, list(dict.fromkeys(asked)), known))
    verdicts = _judge(work, stage, end, kept, lost)
    own = [kept[name].nats_per_token for name in stage.corpora if name in kept]
    tried = Tried(
        at=now(),
        trial=trial.branched.trial,
        step=trial.branched.step + trial.branched.mix.steps,
        checkpoint=end,
        trained_steps=trial.branched.mix.steps,
        values={"adaptation": fmean(own)} if own else {},
        losses=kept,
        verdicts=verdicts,
    )
    work.record(tried)
    work.notify(lambda observer: observer.trial_measured(work, tried))
    broken = [describe_broken(verdict) for verdict in verdicts if not verdict.holds]
    work.log(f"{trial.branched.trial}: {', '.join(broken) or 'it holds the gates'}")


def _judge(
    work: Workspace,
    stage: Stage,
    end: str,
    losses: dict[str, HeldoutLoss],
    lost: tuple[str, ...],
) -> list[Verdict]:
    """Return the verdicts of the bounds on held-out losses, with a trial in its stage's place."""
    matrix = summary.matrix(work.state, last=1)
    tried = replace(matrix, stages=(*matrix.stages[:-1], (stage.name, losses)))
    bounds = work.spec.gates.model_copy(update={"tasks": {}})
    gains = gains_at(work, stage, end) if bounds.min_gain is not None else {}
    return judge_gates(bounds, Measurements(tried, gains, not_finite=lost))
