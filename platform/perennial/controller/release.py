"""Make releases: anneal a branch off the trunk, export and measure it (invariant I7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from perennial import corpora
from perennial.config import parse, parse_amount
from perennial.config.run import ReleaseSpec
from perennial.controller.context import Workspace
from perennial.controller.evaluate_stage import measure
from perennial.controller.ingest_stage import usable
from perennial.controller.origin import measure_origins
from perennial.controller.publish import check_empty, check_place, publish
from perennial.controller.questions import loading_of, sampling, warn_of_undrawn
from perennial.controller.tokenizer_growth import tokenizer_of
from perennial.controller.train_stage import train
from perennial.errors import InputError, Superseded
from perennial.evaluation import Questions, examine
from perennial.evaluation.kept_samples import keep_samples
from perennial.evaluation.scores import plain
from perennial.mixture import describe_tokens, read_mixture
from perennial.runs import summary
from perennial.runs.averaging import Average, read_average
from perennial.runs.events import Measured, Released, Releasing, Scored
from perennial.runs.job_factory import release_job
from perennial.runs.ledger import now
from perennial.runs.model_card import model_card
from perennial.runs.stage_planner import check_not_another, decide_average, decide_release
from perennial.runs.state import RunState, Stage
from perennial.runs.training_content import content_files
from perennial.runs.trunk.containment import trained_corpora
from perennial.training.checkpoint.manifest import committed_steps, read_manifest

if TYPE_CHECKING:
    from perennial.store import Store

Format = Literal["safetensors", "gguf"]
"""of a copy"""


def release(
    work: Workspace,
    origin: str | None = None,
    tokens: str | None = None,
    to: str | None = None,
    copied_as: Format = "safetensors",
    mixture: str | None = None,
    average: str | None = None,
) -> Released:
    """Anneal and export a checkpoint of the trunk, unless that release exists.

    Training continues meanwhile: the controller in charge stays in charge.

    Args:
        work: the run.
        origin: `STAGE@STEP`, or `STAGE` for its end; None is the end of the last stage that passed.
        tokens: length of the anneal, such as `4M tokens`, in place of the run file's.
        to: a place that the release is copied to, see `publish`.
        copied_as: format of that copy.
        mixture: of the anneal, such as `balanced` or `english=2,french=1`, in place of the run
            file's.
        average: `last:5`, `last:5:linear` or `last:5:1-sqrt`: the average of as many checkpoints of
            the trunk, in place of an anneal.

    Returns:
        The release.

    Raises:
        InputError: there is no such checkpoint, a gate stopped its stage, or the place is none.
        Busy: another process has the whole store to itself.
    """
    _check_copy(to, copied_as)
    decided = _decide(work, origin, tokens, mixture, average)
    done = _done(work, decided.name)
    if done is not None:
        work.log(f"release {decided.name} exists already")
        work.notify(lambda observer: observer.found_done(work))
    elif to is not None:
        check_empty(to)
    with work.beside():
        released = done or carry_out(work, decided)
        if to is not None:
            publish(work, decided, released, to, gguf=copied_as == "gguf")
    return released


def plan_release(
    work: Workspace,
    origin: str | None,
    tokens: str | None,
    to: str | None = None,
    copied_as: str | None = "safetensors",
    mixture: str | None = None,
    average: str | None = None,
) -> list[str]:
    """Return what `release` would do, in words; writes nothing."""
    _check_copy(to, copied_as)
    decided = _decide(work, origin, tokens, mixture, average)
    if to is not None and _done(work, decided.name) is None:
        check_empty(to)
    how = f"anneal {_steps(decided)} steps and " if decided.mix else ""
    if decided.average is not None:
        how = f"average {len(decided.average.of)} checkpoints and "
    lines = [f"{how}export {decided.name} from {decided.source}"]
    if decided.mix is not None:
        lines.append(f"anneal on {describe_tokens(decided.mix, work.spec.corpora.sequence_length)}")
    if decided.average is not None:
        lines += _describe_average(work, decided.average)
    return lines if to is None else [*lines, f"copy it to {to} as {copied_as}"]


def _check_copy(to: str | None, copied_as: str | None) -> None:
    if to is not None:
        check_place(to)
    elif copied_as != "safetensors":
        raise InputError(
            "command line",
            "--format",
            f"{copied_as} is the format of a copy, and there is none",
            "name a place with --to",
            code="format-without-place",
        )


def carry_out(work: Workspace, decided: Releasing) -> Released:
    """Make a planned release, from where an earlier process left it.

    Raises:
        Superseded: another process claimed the same release meanwhile.
    """
    claimed = _claim(work, decided)
    checkpoint = claimed.source if claimed.mix is None else _anneal(work, claimed)
    folder = f"releases/{claimed.name}"
    _export(work, claimed, checkpoint, folder)
    return _examine(work, claimed, folder)


def _done(work: Workspace, name: str) -> Released | None:
    return next((done for done in work.state.releases if done.name == name), None)


def _steps(decided: Releasing) -> int:
    return decided.mix.steps if decided.mix else 0


def _claim(work: Workspace, decided: Releasing) -> Releasing:
    """Begin a release; one that was begun already continues as it was decided then."""

    def claim(state: RunState) -> Releasing:
        begun = state.releasing.get(decided.name)
        number = begun.claim + 1 if begun else 1
        return (begun or decided).model_copy(update={"claim": number, "at": now()})

    claimed = work.ledger.transact(claim)
    assert claimed is not None
    return claimed


def evaluate(work: Workspace) -> None:
    """Measure missing cells of the loss matrix, and score the latest release on the tasks.

    Raises:
        Busy: another process has the whole store to itself.
    """
    with work.beside():
        work.notify(lambda observer: observer.found_done(work))
        _fill(work)
        _score_latest(work)


def _score_latest(work: Workspace) -> None:
    if not work.state.releases or not work.spec.evaluation.tasks:
        return
    latest = work.state.releases[-1]
    scored = work.state.tasks.get(latest.name, [])
    tasks = tuple(t for t in work.spec.evaluation.tasks if t not in scored)
    if not tasks:
        return
    work.use_ray()
    work.log(f"scoring release {latest.name} on {', '.join(tasks)}")
    questions = Questions(
        corpora=(),
        texts=tuple(latest.losses),
        sequence_length=work.spec.corpora.sequence_length,
        max_documents=work.spec.evaluation.documents,
        tasks=tasks,
        seed=work.spec.seed,
        loading=loading_of(work),
    )
    answers = examine(work.store, latest.folder, questions)
    scores = [plain(score) for score in answers.tasks]
    work.amend(Scored(at=now(), release=latest.name, tasks=list(tasks), scores=scores))
    work.notify(lambda observer: observer.release_scored(work, latest))


def _fill(work: Workspace) -> None:
    """Measure what is missing of base and stages; within a budget, of the base alone."""
    ready = usable(work.state)
    if work.state.losses and measure_origins(work, like_releases=bool(work.state.releases)):
        work.notify(lambda observer: observer.matrix_filled(work))
    for stage in work.state.stages if work.spec.evaluation.corpora is None else ():
        measured = work.state.losses.get(stage.name, {})
        missing = [name for name in ready if name not in measured]
        if stage.name in work.state.losses and missing:
            work.log(f"measuring {stage.name} on {', '.join(missing)}")
            references = summary.references(work.state, stage)
            losses = measure(work, work.state.ends[stage.name], missing, references)
            work.amend(Measured(at=now(), stage=stage.name, losses=losses))
            work.notify(lambda observer: observer.matrix_filled(work))


def _decide(
    work: Workspace,
    origin: str | None,
    tokens: str | None,
    mixture: str | None,
    average: str | None,
) -> Releasing:
    stage, step = find_checkpoint(work, origin)
    if average is not None:
        if tokens is not None or mixture is not None:
            raise InputError(
                "command line",
                "--average",
                "an average is not annealed, so that tokens and a mixture have no meaning for it",
                "leave out --tokens and --mixture, or --average",
                code="average-not-annealed",
            )
        asked = read_average(average)
        held = _retained(work, stage, step, asked.checkpoints)
        return decide_average(work.spec, held, asked, now())
    try:
        settings = _settings(work.spec.release, tokens, mixture)
        decided = decide_release(work.spec, work.state, stage, step, settings, now())
    except InputError as wrong:
        raise _of_option(wrong, tokens, mixture) from None
    check_not_another(work.state, decided)
    return decided


def _retained(work: Workspace, stage: Stage, step: int, count: int) -> list[tuple[Stage, int]]:
    """Return the last checkpoints of the trunk until a step that the store holds, in order.

    Where a corpus brought entries to the tokenizer, those before it have fewer rows.
    """
    entries = work.state.extension_of(stage)
    held: list[tuple[Stage, int]] = []
    for earlier in reversed([*work.state.lineage(stage), stage]):
        steps = [at for at in committed_steps(work.store, earlier.folder) if at <= step]
        held = [*((earlier, at) for at in steps), *held]
        if len(held) >= count or work.state.extension_before(earlier) != entries:
            break
    return held[-count:]


def _describe_average(work: Workspace, average: Average) -> list[str]:
    """Return the checkpoints of an average in words, with what is read of each."""
    from perennial.training.model.tensor_chunks import is_weights

    total = sum(member.weight for member in average.of)
    lines = []
    for member in average.of:
        manifest = read_manifest(work.store, member.source)
        size = sum(file.size_bytes for name, file in manifest.files.items() if is_weights(name))
        lines.append(
            f"of {member.source}: {member.stage} step {member.step:,}, {manifest.phase} phase, "
            f"weight {member.weight / total:.3f}, {size:,} bytes"
        )
    stages = dict.fromkeys(member.stage for member in average.of)
    if len(stages) > 1:
        lines.append(f"these are checkpoints of {len(stages)} stages: {', '.join(stages)}")
    return lines


def _settings(spec: ReleaseSpec, tokens: str | None, mixture: str | None) -> ReleaseSpec:
    """Return the run file's section `release` with what the command line has in its place."""
    own: dict[str, Any] = {}
    if tokens is not None:
        try:
            own["anneal"] = parse_amount(tokens)
        except ValueError as wrong:
            raise InputError(
                "command line", "--tokens", str(wrong), "give `4M tokens`", code="amount-invalid"
            ) from None
    if mixture is not None:
        value = read_mixture(mixture)
        own["mixture"] = parse({"mixture": value}, ReleaseSpec, "command line").mixture
    return spec.model_copy(update=own)


def _of_option(wrong: InputError, tokens: str | None, mixture: str | None) -> InputError:
    """Return what is wrong with a field as the fault of the option that stands in its place."""
    field = wrong.field.removeprefix("release.")
    name, _, inside = field.partition(".")
    given = {"mixture": ("--mixture", mixture), "anneal": ("--tokens", tokens)}
    option, value = given.get(name, ("", None))
    if value is None:
        return wrong
    wrong.where, wrong.field = "command line", option
    wrong.problem = f"{inside}: {wrong.problem}" if inside else wrong.problem
    return wrong


def find_checkpoint(work: Workspace, origin: str | None) -> tuple[Stage, int]:
    """Return the stage and the step of a checkpoint that may be released.

    Args:
        work: the run.
        origin: `STAGE@STEP`, or `STAGE` for its end; None is the end of the last stage that passed.

    Raises:
        InputError: there is none like it, or a gate stopped its stage.
    """
    state = work.state
    passed = [stage for stage in state.stages if state.has_passed(stage)]
    if origin is None:
        if not passed:
            raise InputError(
                work.where,
                "",
                "the trunk has no finished stage to release",
                "use `perennial run`",
                code="nothing-to-release",
            )
        return passed[-1], passed[-1].last_step
    name, at, step = origin.partition("@")
    stage = next((stage for stage in state.stages if stage.name == name), None)
    if stage is None:
        names = ", ".join(stage.name for stage in state.stages) or "none yet"
        raise InputError(
            "command line",
            "--from",
            f"the trunk has no stage {name!r}",
            f"its stages: {names}",
            code="stage-missing",
        )
    if state.corpora[stage.corpora[0]].state == "gated":
        raise InputError(
            "command line",
            "--from",
            f"a gate stopped {name}",
            f"accept it with `perennial accept {work.where} {stage.corpora[0]}`, or release an "
            "earlier stage",
            code="stage-gated",
        )
    return stage, find_step(work.store, stage, step if at else None, "--from")


def find_step(store: Store, stage: Stage, step: str | None, option: str) -> int:
    """Return the trunk step of a checkpoint of a stage.

    Args:
        store: the run's store.
        stage: the stage.
        step: as the user wrote it; None for the stage's end.
        option: of the command, for the message.

    Raises:
        InputError: there is no such checkpoint.
    """
    steps = committed_steps(store, stage.folder)
    wanted = str(stage.last_step) if step is None else step
    if wanted not in map(str, steps):
        known = ", ".join(f"{stage.name}@{step}" for step in steps) or "none yet"
        raise InputError(
            "command line",
            option,
            f"there is no checkpoint {stage.name}@{wanted}",
            f"give {known}",
            code="checkpoint-missing",
        )
    return int(wanted)


def _anneal(work: Workspace, claimed: Releasing) -> str:
    work.use_ray()
    run_id = work.run_ids.release_run_id(work, claimed.name)
    fence = work.ledger.fence(claimed.kind, claimed.name)
    job = release_job(work.spec, work.state, claimed, work.manifests(claimed.mix), run_id, fence)
    return train(work, job)


def _export(work: Workspace, claimed: Releasing, checkpoint: str, folder: str) -> None:
    from perennial.corpora.release_tokenizer import release_files
    from perennial.training.model.export import export

    if work.store.exists(f"{folder}/manifest.json"):
        return
    work.log(f"exporting release {claimed.name}")
    card = model_card(work.spec, work.state, claimed, work.manifests())
    named = work.spec.tokenizer
    tokenizer = tokenizer_of(work, work.state.stage(claimed.stage))
    base = corpora.read_base_files(work.store, corpora.load_tokenizer(work.store))
    files = release_files(tokenizer, base, named.end_of_document, named.begin_of_document)
    stage = work.state.stage(claimed.stage)
    files |= content_files(
        work.spec, work.state, stage, claimed.step, work.manifests(), claimed.mix
    )
    averaged = claimed.average
    if averaged is not None:
        work.log(f"release {claimed.name} is the {averaged}")
    sources = None if averaged is None else averaged.sources
    export(work.store, checkpoint, folder, files, card, sources)


def _examine(work: Workspace, claimed: Releasing, folder: str) -> Released:
    work.use_ray()
    work.log(f"measuring and sampling release {claimed.name}")
    stage = work.state.stage(claimed.stage)
    questions = Questions(
        corpora=trained_corpora(work.state, stage),
        sequence_length=work.spec.corpora.sequence_length,
        max_documents=work.spec.evaluation.documents,
        seed=work.spec.seed,
        references=summary.references(work.state, stage),
        loading=loading_of(work),
        **sampling(work),
    )
    answers = examine(work.store, folder, questions)
    warn_of_undrawn(work, answers.samples)
    released = Released(
        at=now(),
        name=claimed.name,
        source=claimed.source,
        folder=folder,
        steps=_steps(claimed),
        schedule=claimed.schedule or stage.schedule,
        losses=dict(answers.losses),
        samples=keep_samples(work.store, answers.samples),
    )
    _record(work, claimed, released)
    work.notify(lambda observer: observer.release_made(work, claimed, released))
    return released


def _record(work: Workspace, claimed: Releasing, released: Released) -> None:
    """Write a release that was made, unless another process claimed it meanwhile."""

    def unless_claimed(state: RunState) -> Released:
        if state.releasing.get(claimed.name) != claimed:
            raise Superseded(f"another process claimed release {claimed.name}; this one stops")
        return released

    work.ledger.transact(unless_claimed)
