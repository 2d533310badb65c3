"""Measuring a stage's end, and letting it pass or not."""

from __future__ import annotations

from dataclasses import asdict

from perennial.evaluation import Answers, HeldoutLoss, Questions, examine
from perennial.evaluation.gates import Measured as Measurements
from perennial.evaluation.gates import judge as judge_gates
from perennial.stages import outcome
from perennial.stages.events import Evaluated, Evaluating, Gated, Measured, Passed
from perennial.stages.ingestion import usable
from perennial.stages.ledger import now
from perennial.stages.machine import Stage
from perennial.stages.workspace import Workspace


def evaluate(work: Workspace, name: str) -> None:
    """Measure the end of a corpus's stage on everything that is held out, and on gates' tasks."""
    stage = work.state.stage_of(name)
    if work.state.corpora[name].state == "trained":
        work.record(Evaluating(at=now(), corpus=name))
    work.narrator.say(f"evaluating {stage.name} on held-out documents")
    if work.spec.gates.min_gain is not None:
        _measure_before(work, stage)
    answers = _examine(work, stage)
    losses = {corpus: asdict(loss) for corpus, loss in answers.losses.items()}
    scores = [asdict(score) for score in answers.tasks]
    work.record(Evaluated(at=now(), corpus=name, losses=losses, scores=scores))
    outcome.track(work)
    run = work.tracker.child(stage.name, run_id=stage.tracking_run)
    run.log(stage.last_step, outcome.heldout_metrics(losses))
    run.finish()


def judge(work: Workspace, name: str) -> None:
    """Hold the stage's numbers against the run file's bounds."""
    state, stage = work.state, work.state.stage_of(name)
    before = state.losses.get(state.stages[-2].name, {}) if len(state.stages) > 1 else {}
    own = HeldoutLoss.from_dict(before[name]) if name in before else None
    measured = Measurements(outcome.matrix(state), own, state.stage_scores[stage.name])
    verdicts = judge_gates(work.spec.gates, measured)
    told = [asdict(verdict) for verdict in verdicts]
    if all(verdict.holds for verdict in verdicts):
        work.decide(Passed(at=now(), corpus=name, verdicts=told))
        return
    work.decide(Gated(at=now(), corpus=name, verdicts=told))
    work.narrator.say(f"{stage.name} broke a gate's bound; the line stops")


def _measure_before(work: Workspace, stage: Stage) -> None:
    """Have the loss on the stage's corpus of the stage before, from which its gain is counted."""
    if len(work.state.stages) < 2:
        return
    before = work.state.stages[-2].name
    if stage.corpus not in work.state.losses[before]:
        losses = outcome.measure(work, work.state.ends[before], [stage.corpus])
        work.record(Measured(at=now(), stage=before, losses=losses))


def _examine(work: Workspace, stage: Stage) -> Answers:
    """Losses of the stage's end on everything held out, and the scores that gates ask for."""
    work.use_ray()
    questions = Questions(
        corpora=tuple(usable(work.state)),
        texts=tuple(s.corpus for s in work.state.stages),
        sequence_length=work.spec.corpora.sequence_length,
        max_documents=work.spec.evaluation.documents,
        tasks=tuple(work.spec.gates.tasks),
        seed=work.spec.seed,
        references=outcome.references(work.state),
    )
    return examine(work.store, work.state.ends[stage.name], questions)
