"""Measuring a stage's end, and letting it pass or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from perennial.config import RunSpec
from perennial.controller.context import Workspace
from perennial.controller.ingest_stage import usable
from perennial.corpora import read_manifest
from perennial.evaluation import Answers, Questions, examine
from perennial.evaluation import measure as measure_losses
from perennial.evaluation.cache import kept_losses
from perennial.evaluation.gates import Measurements
from perennial.evaluation.gates import judge as judge_gates
from perennial.evaluation.loss import Change, HeldoutLoss, paired_change
from perennial.evaluation.scores import plain
from perennial.evaluation.tasks import is_per_corpus
from perennial.runs import summary
from perennial.runs.events import Evaluated, Evaluating, Gated, Measured, Passed
from perennial.runs.ledger import now
from perennial.runs.state import Stage


def evaluate(work: Workspace, name: str) -> None:
    """Measure the end of a corpus's stage on what is held out and on tasks, and sample it."""
    stage = work.state.stage_of(name)
    if work.state.corpora[name].state == "trained":
        work.record(Evaluating(at=now(), corpus=name))
    work.log(f"evaluating {stage.name} on held-out documents")
    if work.spec.gates.min_gain is not None:
        _measure_before(work, stage)
    _score_before(work, stage)
    answers = _examine(work, stage)
    work.record(
        Evaluated(
            at=now(),
            corpus=name,
            losses=dict(answers.losses),
            scores=[plain(score) for score in answers.tasks],
            samples=list(answers.samples),
        )
    )
    work.notify(lambda observer: observer.stage_evaluated(work, stage))


def judge(work: Workspace, name: str) -> None:
    """Hold the stage's numbers against the run file's bounds."""
    state, stage = work.state, work.state.stage_of(name)
    gains = _gains(work, stage) if work.spec.gates.min_gain is not None else {}
    measured = Measurements(
        summary.matrix(state),
        gains,
        state.stage_scores[stage.name],
        summary.scores_before(state, stage),
    )
    verdicts = judge_gates(work.spec.gates, measured)
    if all(verdict.holds for verdict in verdicts):
        work.decide(Passed(at=now(), corpus=name, verdicts=list(verdicts)))
        return
    work.decide(Gated(at=now(), corpus=name, verdicts=list(verdicts)))
    work.log(f"{stage.name} broke a gate's bound; the line stops")


def _measure_before(work: Workspace, stage: Stage) -> None:
    """Have the stage before measured on this one's corpora: their gain is counted from there."""
    if stage.start is None:
        return
    before = work.state.stages[-2].name
    known = work.state.losses[before]
    missing = [n for n in stage.corpora if n not in known or not _is_kept(work, stage.start, n)]
    if missing:
        losses = measure(work, stage.start, missing)
        work.record(Measured(at=now(), stage=before, losses=losses))


def _is_kept(work: Workspace, checkpoint: str, corpus: str) -> bool:
    """Whether the losses of as many documents are kept as will be measured now."""
    kept = kept_losses(work.store, checkpoint, corpus)
    there = read_manifest(work.store, corpus).counts.held_out_documents
    return kept is not None and len(kept) == min(there, work.spec.evaluation.documents)


def _gains(work: Workspace, stage: Stage) -> dict[str, Change]:
    """How far the loss on each of the stage's corpora fell, document by document."""
    found = {}
    for name in stage.corpora:
        before = kept_losses(work.store, stage.start, name) if stage.start else None
        after = kept_losses(work.store, work.state.ends[stage.name], name)
        if before is not None and after is not None:
            found[name] = paired_change(before, after)
    return {name: gain for name, gain in found.items() if gain is not None}


def _score_before(work: Workspace, stage: Stage) -> None:
    """Have the scores of the checkpoint that the stage started from, where they are compared.

    Its own evaluation gave them, but for tasks made of the stage's own corpora, and for tasks that
    the run file did not name then.
    """
    gated = [name for name, gate in work.spec.gates.tasks.items() if gate.max_drop is not None]
    wanted = dict.fromkeys([*gated, *_trunk_tasks(work)])
    if stage.start is None or not wanted:
        return
    before = summary.scores_before(work.state, stage)
    asked = {score["asked"] for score in before}
    new = [name for name in wanted if name not in asked]
    own = [name for name in wanted if name in asked and is_per_corpus(name)]
    for tasks, texts in ((new, _questions(work).texts), (own, stage.corpora)):
        if tasks:
            work.log(f"scoring the checkpoint from which {stage.name} started")
            work.use_ray()
            questions = replace(_questions(work), corpora=(), tasks=tuple(tasks), texts=texts)
            answers = examine(work.store, stage.start, questions)
            start = next(s for s in work.state.stages if work.state.ends.get(s.name) == stage.start)
            scores = [plain(score) for score in answers.tasks]
            work.record(Measured(at=now(), stage=start.name, losses={}, scores=scores))


def _trunk_tasks(work: Workspace) -> tuple[str, ...]:
    return work.spec.evaluation.tasks if work.spec.evaluation.trunk_tasks else ()


def _examine(work: Workspace, stage: Stage) -> Answers:
    """What the stage's end has learned and kept, what it scores, and what it writes."""
    work.use_ray()
    spec = work.spec
    tasks = [*spec.gates.tasks, *_trunk_tasks(work)]
    questions = replace(
        _questions(work),
        tasks=tuple(dict.fromkeys(tasks)),
        task_reference=stage.start,
        **sampling(spec),
    )
    return examine(work.store, work.state.ends[stage.name], questions)


def _questions(work: Workspace) -> Questions:
    return Questions(
        corpora=tuple(usable(work.state)),
        texts=tuple(name for s in work.state.stages for name in s.corpora),
        sequence_length=work.spec.corpora.sequence_length,
        max_documents=work.spec.evaluation.documents,
        seed=work.spec.seed,
        references=summary.references(work.state),
    )


def measure(work: Workspace, folder: str, corpora: Sequence[str]) -> dict[str, HeldoutLoss]:
    """Held-out losses of a checkpoint or release, ready for the ledger."""
    work.use_ray()
    losses = measure_losses(
        work.store,
        folder,
        corpora,
        work.spec.corpora.sequence_length,
        work.spec.evaluation.documents,
        summary.references(work.state),
    )
    return dict(losses)


_PROMPTS_PER_CORPUS = 2


def sampling(spec: RunSpec) -> dict[str, Any]:
    """What every stage and release writes: from fixed prompts, so that they compare."""
    tokens = spec.release.sample_tokens
    return {
        "prompts": {"": spec.evaluation.prompts} if tokens else {},
        "prompts_per_corpus": _PROMPTS_PER_CORPUS if tokens else 0,
        "sample_tokens": tokens,
    }
