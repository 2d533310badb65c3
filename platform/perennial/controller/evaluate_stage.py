"""Evaluate a stage's end, and apply the gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from perennial.controller.context import Workspace
from perennial.controller.ingest_stage import usable
from perennial.controller.origin import measure_origins
from perennial.controller.questions import loading_of, questions_of, sampling, warn_of_undrawn
from perennial.corpora import read_manifest
from perennial.evaluation import Answers, Questions, examine
from perennial.evaluation import measure as measure_losses
from perennial.evaluation.cache import kept_losses
from perennial.evaluation.gates import Measurements
from perennial.evaluation.gates import judge as judge_gates
from perennial.evaluation.kept_samples import keep_samples
from perennial.evaluation.loss import Change, HeldoutLoss, paired_change
from perennial.evaluation.scores import plain
from perennial.evaluation.tasks import is_per_corpus
from perennial.runs import summary
from perennial.runs.events import Evaluated, Evaluating, Gated, Measured, Passed
from perennial.runs.ledger import now
from perennial.runs.state import Stage
from perennial.runs.unattended.evaluation_draw import decide_draw, measured_corpora


def evaluate(work: Workspace, name: str) -> None:
    """Measure a stage's end on held-out documents and tasks, and sample from it."""
    stage = prepare(work, name)
    work.log(f"evaluating {stage.name} on held-out documents")
    asked = questions_at(work, stage)
    keep(work, name, examine(work.store, work.state.ends[stage.name], asked))


def prepare(work: Workspace, name: str) -> Stage:
    """Measure what a stage's end is compared with; return the stage.

    Args:
        work: the run.
        name: the first corpus of the stage.
    """
    stage = work.state.stage_of(name)
    if work.state.corpora[name].state == "trained":
        draw = decide_draw(work.spec, work.state, stage, usable(work.state))
        work.record(Evaluating(at=now(), corpus=name, draw=draw))
    measure_origins(work)
    if work.spec.gates.min_gain is not None:
        _measure_before(work, stage)
    _score_before(work, stage)
    return stage


def keep(work: Workspace, name: str, answers: Answers) -> None:
    """Record the measurements of a stage's end.

    Args:
        work: the run.
        name: the first corpus of the stage.
        answers: the measurements.
    """
    stage = work.state.stage_of(name)
    warn_of_undrawn(work, answers.samples)
    work.record(
        Evaluated(
            at=now(),
            corpus=name,
            losses=dict(answers.losses),
            scores=[plain(score) for score in answers.tasks],
            samples=keep_samples(work.store, answers.samples),
            draw=work.state.drawing,
        )
    )
    work.notify(lambda observer: observer.stage_evaluated(work, stage))


def judge(work: Workspace, name: str) -> None:
    """Compare a stage's measurements with the run file's bounds, and record the verdicts."""
    state, stage = work.state, work.state.stage_of(name)
    asked = work.spec.gates.min_gain is not None
    gains = gains_at(work, stage, work.state.ends[stage.name]) if asked else {}
    measured = Measurements(
        summary.matrix(state, last=1),
        gains,
        state.stage_scores[stage.name],
        summary.scores_before(state, stage),
        state.not_finite.get(stage.name, ()),
    )
    verdicts = judge_gates(work.spec.gates, measured)
    if all(verdict.holds for verdict in verdicts):
        work.decide(Passed(at=now(), corpus=name, verdicts=list(verdicts)))
        return
    work.decide(Gated(at=now(), corpus=name, verdicts=list(verdicts)))
    work.log(f"{stage.name} exceeded a gate's bound; the run is paused")
    work.notify(lambda observer: observer.stage_gated(work, stage))


def _measure_before(work: Workspace, stage: Stage) -> None:
    """Measure the previous stage on this one's corpora, from which their gain is counted."""
    if stage.start is None:
        return
    previous = work.state.stages[stage.after - 1]
    before = previous.name
    known = work.state.losses[before]
    missing = [n for n in stage.corpora if n not in known or not is_kept(work, stage.start, n)]
    if missing:
        references = summary.references(work.state, previous)
        losses = measure(work, stage.start, missing, references)
        work.record(Measured(at=now(), stage=before, losses=losses))


def is_kept(work: Workspace, checkpoint: str, corpus: str) -> bool:
    """Return whether the losses of as many documents are kept as will be measured now."""
    kept = kept_losses(work.store, checkpoint, corpus)
    there = read_manifest(work.store, corpus).counts.held_out_documents
    return kept is not None and len(kept) == min(there, work.spec.evaluation.documents)


def gains_at(work: Workspace, stage: Stage, end: str) -> dict[str, Change]:
    """Return the paired change of the loss over documents, by corpus of the stage.

    Args:
        work: the run.
        stage: the stage.
        end: key of the checkpoint at its end, or at that of a trial of it.
    """
    gains, start = {}, work.state.start_of(stage)
    for name in stage.corpora:
        before = kept_losses(work.store, start, name) if start else None
        after = kept_losses(work.store, end, name)
        if before is not None and after is not None:
            gains[name] = paired_change(before, after)
    return {name: gain for name, gain in gains.items() if gain is not None}


def _score_before(work: Workspace, stage: Stage) -> None:
    """Score the checkpoint that the stage started from, where a comparison needs it.

    Its own evaluation gave most scores, and the base was scored before. Missing are tasks that are
    made of this stage's corpora, and tasks that the run file did not name at that time.
    """
    gated = [name for name, gate in work.spec.gates.tasks.items() if gate.max_drop is not None]
    wanted = dict.fromkeys([*gated, *_trunk_tasks(work)])
    if stage.start is None or not wanted:
        return
    before = summary.scores_before(work.state, stage)
    asked = {score["asked"] for score in before}
    new = [name for name in wanted if name not in asked]
    own = [name for name in wanted if name in asked and is_per_corpus(name)]
    questions = questions_of(work, {})
    for tasks, texts in ((new, questions.texts), (own, stage.corpora)):
        if tasks:
            work.log(f"scoring the checkpoint from which {stage.name} started")
            work.use_ray()
            asking = replace(questions, corpora=(), tasks=tuple(tasks), texts=texts)
            answers = examine(work.store, stage.start, asking)
            start = next(s for s in work.state.stages if work.state.ends.get(s.name) == stage.start)
            scores = [plain(score) for score in answers.tasks]
            work.record(Measured(at=now(), stage=start.name, losses={}, scores=scores))


def _trunk_tasks(work: Workspace) -> tuple[str, ...]:
    return work.spec.evaluation.tasks if work.spec.evaluation.trunk_tasks else ()


def questions_at(work: Workspace, stage: Stage) -> Questions:
    """Return what is asked at a stage's end: held-out losses, scores and samples."""
    work.use_ray()
    spec = work.spec
    tasks = [*spec.gates.tasks, *_trunk_tasks(work)]
    draw, asked = work.state.drawing, questions_of(work, summary.references(work.state, stage))
    named = asked.sources if draw is None else (*stage.corpora, *draw.always)
    return replace(
        asked,
        corpora=tuple(measured_corpora(draw, stage, asked.corpora)),
        # With a budget, scores of tasks would be compared with those on other corpora.
        texts=tuple(name for name in asked.sources if name in named),
        tasks=tuple(dict.fromkeys(tasks)),
        task_reference=work.state.start_of(stage),
        **sampling(work),
    )


def measure(
    work: Workspace,
    folder: str,
    corpora: Sequence[str],
    references: Mapping[str, str] | None = None,
) -> dict[str, HeldoutLoss]:
    """Measure held-out losses of a checkpoint.

    Args:
        work: the run.
        folder: key of the checkpoint.
        corpora: the corpora whose held-out documents are read.
        references: by corpus, the model that its loss is compared with; default none.

    Returns:
        The losses by corpus.
    """
    work.use_ray()
    losses = measure_losses(
        work.store,
        folder,
        corpora,
        work.spec.corpora.sequence_length,
        work.spec.evaluation.documents,
        references,
        loading=loading_of(work),
    )
    return dict(losses)
