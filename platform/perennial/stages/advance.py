"""The shell of the controller: ask the machine what to do, do it, write it down."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from perennial import corpora
from perennial.errors import InputError
from perennial.stages import outcome
from perennial.stages.events import Evaluated, Landed, Ready, Refused, Trained
from perennial.stages.jobs import check_first_stage, decide_stage, stage_job, stage_steps
from perennial.stages.ledger import now
from perennial.stages.machine import Instruction, RunState, next_instruction
from perennial.stages.training import train
from perennial.stages.workspace import Workspace

if TYPE_CHECKING:
    from perennial.corpora import CorpusManifest


def advance(work: Workspace, *, reschedule: bool = False) -> int:
    """Do everything that is left to do, one stage after the other; how many stages were trained.

    Safe to call again and safe to kill: what was begun is finished first, what is done is not
    repeated (invariant I4). Writes nothing when there is nothing to do.
    """
    trained = 0
    while (step := next_instruction(work.state, _inbox(work))) is not None:
        work.take_over()
        match step.verb:
            case "record-landing" | "ingest":
                _prepare(work, step)
            case "start":
                _start(work, step.corpus, reschedule)
            case "train":
                _train(work, step.corpus)
                trained += 1
            case "evaluate":
                _evaluate(work, step.corpus)
    return trained


def ingest_landed(work: Workspace) -> None:
    """Tokenise what has landed without training it.

    Raises InputError while a stage is unfinished.
    """
    while (step := next_instruction(work.state, _inbox(work))) is not None:
        if step.verb in ("train", "evaluate"):
            raise InputError(
                work.where, "", f"the stage of {step.corpus} is unfinished", "use `perennial run`"
            )
        if step.verb == "start":
            return
        work.take_over()
        _prepare(work, step)


def unfinished(work: Workspace) -> str | None:
    """The corpus whose stage was begun and is not finished."""
    step = next_instruction(work.state, _inbox(work))
    return step.corpus if step is not None and step.verb in ("train", "evaluate") else None


def todo(work: Workspace) -> list[str]:
    """What `advance` would do first, and what waits behind it; writes nothing."""
    names = _inbox(work)
    first = next_instruction(work.state, names)
    if first is None:
        return []
    waiting = [name for name in names if name not in work.state.corpora and name != first.corpus]
    return [f"{first.verb} {first.corpus}", *(f"then {name}" for name in waiting)]


def check_inbox(work: Workspace) -> None:
    """Refuse landed corpora that cannot become a stage, before anything is written."""
    names = _inbox(work)
    for name in names:
        if name not in work.state.corpora:
            size = corpora.inspect(work.inbox, name).total_bytes
            check_size(work, name, size)
    if names and not work.state.stages:
        check_first_stage(work.spec, next(iter(work.state.corpora), names[0]))


def check_size(work: Workspace, name: str, stored_bytes: int) -> None:
    """Refuse a corpus that is smaller than one global batch whatever its text is.

    Plain text gives at most one token a byte; compressed text is judged after ingestion.
    """
    if stored_bytes < work.spec.tokens_per_step // 16:
        raise InputError(
            f"{work.inbox.url}/{name}",
            "",
            f"{stored_bytes} bytes are less than one global batch of "
            f"{work.spec.tokens_per_step} tokens",
            "land more text, or lower training.global_batch",
        )


def _inbox(work: Workspace) -> list[str]:
    return [landed.name for landed in corpora.landed(work.inbox)]


def _prepare(work: Workspace, step: Instruction) -> None:
    if step.verb == "ingest":
        _ingest(work, step.corpus)
    else:
        size = corpora.inspect(work.inbox, step.corpus).total_bytes
        work.record(Landed(at=now(), corpus=step.corpus, size_bytes=size))


def _ingest(work: Workspace, name: str) -> None:
    work.use_ray()
    _ = work.tracker
    try:
        manifest = _tokenise(work, name)
        stage_steps(work.spec, name, manifest.rows)
    except InputError as refusal:
        work.record(Refused(at=now(), corpus=name, reason=str(refusal)))
        raise
    _warn_of_misfit(work, manifest)
    counts = manifest.counts
    work.narrator.say(
        f"ingested {name}: {counts.documents:,} documents, {manifest.tokens:,} training tokens, "
        f"{counts.held_out_documents:,} documents held out"
    )
    work.record(
        Ready(
            at=now(),
            corpus=name,
            sequences=manifest.rows,
            tokens=manifest.tokens,
            digest=manifest.digest,
        )
    )


def _warn_of_misfit(work: Workspace, manifest: CorpusManifest) -> None:
    """Say when the tokenizer, made for the first corpus, fits this one badly."""
    first = next((name for name in _ready(work.state) if name != manifest.name), None)
    if first is not None:
        told = corpora.fit_warning(corpora.read_manifest(work.store, first), manifest)
        if told is not None:
            work.narrator.say(f"warning: {told}")


def _tokenise(work: Workspace, name: str) -> CorpusManifest:
    settings = corpora.IngestSettings(
        text_field=work.spec.corpora.text_field,
        domain_field=work.spec.corpora.domain_field,
        sequence_length=work.spec.corpora.sequence_length,
        seed=work.spec.seed,
        holdout_share=work.spec.corpora.holdout,
        max_bad_share=work.spec.corpora.max_bad_share,
        duplicates=work.spec.corpora.duplicates,
        near_duplicates=work.spec.corpora.near_duplicates,
    )
    work.narrator.say(f"ingesting {name}")
    if work.spec.tokenizer.path is not None:
        corpora.import_tokenizer(work.store, work.spec.tokenizer.path)
    elif work.spec.tokenizer.vocabulary is not None:
        vocabulary = work.spec.tokenizer.vocabulary
        corpora.train_tokenizer(work.store, work.inbox, name, vocabulary, settings)
    return corpora.ingest(
        work.store,
        work.inbox,
        name,
        settings,
        earlier=[each for each in _ready(work.state) if each != name],
        decontaminate=[Path(path) for path in work.spec.corpora.decontaminate],
    )


def _start(work: Workspace, name: str, reschedule: bool) -> None:
    # Decided once without a tracking run, so that bad input is refused before MLflow hears of it.
    decided = decide_stage(work.spec, work.state, name, now(), "", reschedule)
    unreplayed = decided.mix["unreplayed"]
    if unreplayed and work.state.stages:
        work.narrator.say(
            f"{decided.stage}: {unreplayed:,} sequences of the replay share are new ones instead, "
            "because no earlier corpus may give more"
        )
    run = work.tracker.child(decided.stage, params=outcome.parameters(work.spec, decided))
    work.record(decided.model_copy(update={"tracking_run": run.wait_id(timeout_seconds=30) or ""}))


def _train(work: Workspace, name: str) -> None:
    stage = work.state.stage_of(name)
    if stage.start is None:
        work.import_model()
    work.use_ray()
    checkpoint = train(work, stage_job(work.spec, work.state, stage, work.manifests()))
    work.record(Trained(at=now(), corpus=name, checkpoint=checkpoint, step=stage.last_step))


def _evaluate(work: Workspace, name: str) -> None:
    stage = work.state.stage_of(name)
    work.narrator.say(f"evaluating {stage.name} on held-out documents")
    losses = outcome.measure(work, work.state.ends[stage.name], _ready(work.state))
    work.record(Evaluated(at=now(), corpus=name, losses=losses))
    outcome.track(work)
    run = work.tracker.child(stage.name, run_id=stage.tracking_run)
    run.log(stage.last_step, outcome.heldout_metrics(losses))
    run.finish()


def _ready(state: RunState) -> list[str]:
    return [corpus.name for corpus in state.corpora.values() if "ready" in corpus.story]
