"""Annealing a branch off the end of the trunk, exporting it, and measuring it (invariant I7)."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from perennial.errors import InputError
from perennial.evaluation import Questions, examine
from perennial.schedules import from_dict, to_dict
from perennial.spec import parse_amount
from perennial.stages import outcome
from perennial.stages.card import model_card
from perennial.stages.events import Measured, Released, Scored
from perennial.stages.jobs import release_job
from perennial.stages.ledger import now
from perennial.stages.machine import Stage
from perennial.stages.training import train
from perennial.stages.workspace import Workspace
from perennial.training.rates import release_anneal

if TYPE_CHECKING:
    from perennial.schedules import Anneal

_PROMPTS_PER_CORPUS = 2


def release(work: Workspace, tokens: str | None = None) -> Released:
    """Anneal and export the end of the trunk, once; the release that is there already otherwise.

    tokens: length of the anneal, such as `4M tokens`, in place of the run file's.
    Raises InputError when no stage was trained, or the last one is not finished.
    """
    stage, anneal = _plan(work, tokens)
    name = _name(stage, anneal)
    for done in work.state.releases:
        if done.name == name:
            work.narrator.say(f"release {name} is there already")
            return done
    work.take_over()
    source = work.state.ends[stage.name]
    checkpoint = source if anneal is None else _anneal(work, name, anneal)
    folder = f"releases/{name}"
    _export(work, name, stage, anneal, checkpoint, folder)
    return _examine(work, name, stage, anneal, folder)


def plan_release(work: Workspace, tokens: str | None) -> str:
    """What `release` would do; writes nothing."""
    stage, anneal = _plan(work, tokens)
    how = f"anneal {anneal.steps} steps and " if anneal else ""
    return f"{how}export {_name(stage, anneal)} from {work.state.ends[stage.name]}"


def evaluate(work: Workspace) -> None:
    """Fill the matrix's missing cells, and score the latest release on the run file's tasks."""
    _fill(work)
    if not work.state.releases or not work.spec.evaluation.tasks:
        return
    latest = work.state.releases[-1]
    scored = work.state.tasks.get(latest.name, [])
    tasks = tuple(t for t in work.spec.evaluation.tasks if t not in scored)
    if not tasks:
        return
    work.take_over()
    work.use_ray()
    work.narrator.say(f"scoring release {latest.name} on {', '.join(tasks)}")
    questions = Questions(
        corpora=tuple(latest.losses),
        sequence_length=work.spec.corpora.sequence_length,
        max_documents=work.spec.evaluation.documents,
        tasks=tasks,
        seed=work.spec.seed,
    )
    answers = examine(work.store, latest.folder, questions)
    found = [asdict(score) for score in answers.tasks]
    work.record(Scored(at=now(), release=latest.name, tasks=list(tasks), scores=found))
    run = work.tracker.child(f"release-{latest.name}")
    for score in found:
        if "value" in score:
            key = f"tasks/{score['task']}/{score['metric']}"
            values = {key: score["value"], f"{key}_stderr": score["stderr"]}
            step = latest.schedule.get("start_step", 0) + latest.steps
            run.log(step, {k: v for k, v in values.items() if v is not None})
    run.finish()


def _fill(work: Workspace) -> None:
    ready = [corpus.name for corpus in work.state.corpora.values() if "ready" in corpus.story]
    for stage in work.state.stages:
        measured = work.state.losses.get(stage.name, {})
        missing = [name for name in ready if name not in measured]
        if stage.name in work.state.losses and missing:
            work.take_over()
            work.narrator.say(f"measuring {stage.name} on {', '.join(missing)}")
            losses = outcome.measure(work, work.state.ends[stage.name], missing)
            work.record(Measured(at=now(), stage=stage.name, losses=losses))
            outcome.track(work)


def _plan(work: Workspace, tokens: str | None) -> tuple[Stage, Anneal | None]:
    """The stage whose end is released, and the anneal off it."""
    state = work.state
    if not state.stages or state.stages[-1].name not in state.ends:
        raise InputError(
            work.where, "", "the trunk has no finished stage to release", "use `perennial run`"
        )
    stage = state.stages[-1]
    settings = work.spec.release
    if tokens is not None:
        try:
            settings = settings.model_copy(update={"anneal": parse_amount(tokens)})
        except ValueError as wrong:
            raise InputError("command line", "--tokens", str(wrong), "give `4M tokens`") from None
    anneal = release_anneal(
        settings,
        work.spec.schedule.eta_min,
        from_dict(stage.schedule),
        stage.last_step,
        work.spec.tokens_per_step,
    )
    return stage, anneal


def _name(stage: Stage, anneal: Anneal | None) -> str:
    steps = f"-anneal{anneal.steps}" if anneal else ""
    return f"{stage.name}-{stage.last_step}{steps}"


def _anneal(work: Workspace, name: str, anneal: Anneal) -> str:
    work.use_ray()
    run = work.tracker.child(f"release-{name}")
    run_id = run.wait_id(timeout_seconds=30) or ""
    job = release_job(work.spec, work.state, name, anneal, work.manifests(), run_id)
    return train(work, job)


def _export(
    work: Workspace,
    name: str,
    stage: Stage,
    anneal: Anneal | None,
    checkpoint: str,
    folder: str,
) -> None:
    from perennial.corpora import load_tokenizer
    from perennial.training.export import export

    if work.store.exists(f"{folder}/manifest.json"):
        return
    work.narrator.say(f"exporting release {name}")
    card = model_card(work.spec, work.state, name, stage, anneal, work.manifests())
    tokenizer = load_tokenizer(work.store)
    end = tokenizer.manifest.end_of_document_text
    export(work.store, checkpoint, folder, tokenizer.json, end, card)


def _examine(
    work: Workspace, name: str, stage: Stage, anneal: Anneal | None, folder: str
) -> Released:
    work.use_ray()
    work.narrator.say(f"measuring and sampling release {name}")
    trained = [s.corpus for s in work.state.stages]
    questions = Questions(
        corpora=tuple(trained),
        sequence_length=work.spec.corpora.sequence_length,
        max_documents=work.spec.evaluation.documents,
        prompts_per_corpus=_PROMPTS_PER_CORPUS if work.spec.release.sample_tokens else 0,
        sample_tokens=work.spec.release.sample_tokens,
        seed=work.spec.seed,
        references=outcome.references(work.state),
    )
    answers = examine(work.store, folder, questions)
    released = Released(
        at=now(),
        name=name,
        source=work.state.ends[stage.name],
        folder=folder,
        steps=anneal.steps if anneal else 0,
        schedule=to_dict(anneal) if anneal else stage.schedule,
        losses={corpus: asdict(loss) for corpus, loss in answers.losses.items()},
        samples=[asdict(sample) for sample in answers.samples],
    )
    work.record(released)
    outcome.track(work)
    _track(work, stage, released)
    return released


def _track(work: Workspace, stage: Stage, released: Released) -> None:
    run = work.tracker.child(f"release-{released.name}")
    run.log(stage.last_step + released.steps, outcome.heldout_metrics(released.losses))
    run.artifact(_samples(released), "samples.txt")
    run.register(
        work.spec.name,
        released.name,
        f"{work.store.url}/{released.folder}",
        aliases=[f"stage-{stage.name}"],
        tags={"perennial.stage": stage.name, "perennial.step": stage.last_step},
    )
    run.finish()


def _samples(released: Released) -> bytes:
    lines = [f"[{s['corpus']}] {s['prompt']} ...{s['text']}" for s in released.samples]
    return "\n\n".join(lines).encode()
