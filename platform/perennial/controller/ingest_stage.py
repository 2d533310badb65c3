"""Tokenise a landed corpus, or refuse it with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from perennial import corpora
from perennial.controller.before_compute import check_size
from perennial.controller.context import Workspace
from perennial.controller.declared_ids import declared_ids
from perennial.controller.ray_cluster import describe_shortage
from perennial.controller.tokenizer_growth import (
    check_extension,
    tokenizer_for,
    withdraw_extension,
)
from perennial.corpora import LandedCorpus
from perennial.corpora.counts import FUZZY_DUPLICATE, REPEATED_LINES
from perennial.corpora.manifest import FillInTheMiddle, manifest_key
from perennial.corpora.tokenizer import MANIFEST_KEY
from perennial.errors import InputError
from perennial.runs.events import Landed, Ready, Refused
from perennial.runs.ledger import now
from perennial.runs.stage_planner import stage_steps
from perennial.runs.state import RunState
from perennial.steps import StepPipeline
from perennial.store import open_run_store

if TYPE_CHECKING:
    from perennial.config.corpora import CorporaSpec
    from perennial.corpora import CorpusManifest, IngestSettings

_WITHOUT_TEXT: Final[dict[str, Any]] = {
    "near_duplicates": None,
    "fuzzy_duplicates": None,
    "repeated_lines": None,
    "steps": (),
    "fill_in_the_middle": None,
}
"""settings of what is done to text alone"""


_NOT_OF_THE_CORPUS = frozenset(
    {
        "step-changed",
        "step-unusable",
        "plugin-missing",
        "token-is-no-word",
        "tokenizer-not-extendable",
    }
)
"""codes of what is wrong with a node, with the code of a step as a task met it, or with what the
run file asks of the tokenizer"""


def landing(work: Workspace, landed: LandedCorpus) -> Landed:
    """Return the event of a corpus that landed; the list of its files is kept in the store."""
    return Landed(
        at=now(),
        corpus=landed.name,
        size_bytes=landed.total_bytes,
        listing=corpora.record_list(work.store, work.inbox, landed),
    )


def ingest(work: Workspace, name: str) -> None:
    """Tokenise a landed corpus, and refuse one that cannot become a stage.

    Args:
        work: the run.
        name: the corpus.

    Raises:
        InputError: the run's tokenizer, or the manifest of an earlier corpus, is lost or altered;
            or what the run file says of the corpus's token ids cannot be.
    """
    # What is wrong with the corpora so far is no reason to refuse this one. And a lost tokenizer
    # must not be made again: they have the ids of the old one.
    for earlier in usable(work.state):
        corpora.read_manifest(work.store, earlier)
        corpora.load_tokenizer(work.store)
    ids = declared_ids(work, name, _has_accepted(work))
    check_extension(work, name, is_text=ids is None, is_decided=_has_accepted(work))
    settings = settings_of(work, name)
    if ids is not None:
        settings = settings.model_copy(update={"tokens": ids} | _WITHOUT_TEXT)
    _check_run_file(work)
    try:
        landed = _check_landed(work, name)
        if work.state.corpora[name].state == "landed" and landed is not None:
            check_size(work, name, landed.files)
    except InputError as refusal:
        _refuse(work, name, refusal)
        return
    with work.ingesting(name):
        _ingest(work, name, landed, settings)


def _check_run_file(work: Workspace) -> None:
    """Raise InputError for files that the run file names and that cannot be read.

    No corpus is refused for them: the next one would be too, and each would have to be retried.
    """
    # Imported here: it loads pyarrow, which a look at the run's state needs not.
    from perennial.corpora.ingest.decontaminate import read_evaluation_texts

    spec = work.spec.tokenizer
    if spec.path is not None and not work.store.exists(MANIFEST_KEY):
        corpora.read_tokenizer(spec.path, spec.end_of_document, spec.begin_of_document)
    paths = [Path(path) for path in work.spec.corpora.decontaminate]
    read_evaluation_texts(paths, _settings(work.spec.corpora, work.spec.seed))


def _refuse(work: Workspace, name: str, refusal: InputError) -> None:
    work.record(Refused(at=now(), corpus=name, reason=str(refusal), code=refusal.code))
    if work.state.corpora[name].holds_nothing_new:
        work.log(f"{name} is left out: {refusal.problem}")
    else:
        work.log(f"warning: {name} is refused: {refusal}")


def _ingest(
    work: Workspace, name: str, landed: LandedCorpus | None, settings: IngestSettings
) -> None:
    # The first corpus that is accepted decides the tokenizer: one of a corpus that was refused, or
    # whose ingest was killed, is not the run's.
    is_undecided = not _has_accepted(work)
    if is_undecided:
        corpora.withdraw_tokenizer(work.store)
    try:
        work.use_ray()
        work.notify(lambda observer: observer.ingest_began(work, name))
        manifest = _tokenise(work, name, landed, settings)
        stage_steps(work.spec, name, manifest.rows)  # of a corpus that was accepted before
    except InputError as refusal:
        if is_undecided:
            corpora.withdraw_tokenizer(work.store)
        withdraw_extension(work, name)
        if refusal.code in _NOT_OF_THE_CORPUS:
            raise
        _refuse(work, name, refusal)
        return
    _warn_of_misfit(work, manifest)
    counts = manifest.counts
    lost = counts.lost_documents_estimate
    work.log(
        f"ingested {name}: {counts.documents:,} documents, {manifest.tokens:,} training tokens, "
        f"{counts.held_out_documents:,} documents held out"
        + (f", about {lost:,} lost in damaged files" if lost else "")
    )
    work.log(f"{name}: {manifest.describe_packing()}")
    _warn_of_metadata(work, manifest)
    if counts.filled_documents:
        work.log(f"{name}: {counts.filled_documents:,} documents have their middle at the end")
    _log_steps(work, manifest)
    work.record(
        Ready(
            at=now(),
            corpus=name,
            sequences=manifest.rows,
            tokens=manifest.tokens,
            digest=manifest.digest,
            parts=manifest.part_rows,
        )
    )


def _warn_of_metadata(work: Workspace, manifest: CorpusManifest) -> None:
    """Warn of a field of metadata that no document has."""
    for column, field in manifest.find_unknown_metadata().items():
        work.log(
            f"warning: no document of {manifest.name} has a field {field!r} "
            f"(corpora.metadata.{column})"
        )


def _log_steps(work: Workspace, manifest: CorpusManifest) -> None:
    """Show what the steps dropped and changed, and the CPU that they took."""
    for step, seconds in manifest.step_cpu_seconds.items():
        kind = step.partition(" ")[2]
        reasons = {
            reason.partition("/")[2]: count
            for reason, count in manifest.counts.quarantined.items()
            if reason.startswith(f"{kind}/")
        }
        listed = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
        did = [f"{listed} dropped"] if listed else []
        if changed := manifest.step_changes.get(step):
            did.append(f"{changed:,} changed")
        work.log(f"step {step}: {', '.join(did) or 'nothing dropped'}, {seconds:.1f} s of CPU")
    counts, removed = manifest.counts, manifest.counts.quarantined
    settings = manifest.settings
    if settings.fuzzy_duplicates is not None:
        work.log(f"fuzzy duplicates: {removed.get(FUZZY_DUPLICATE, 0):,} dropped")
    if settings.repeated_lines is not None:
        work.log(
            f"repeated lines: {removed.get(REPEATED_LINES, 0):,} dropped, "
            f"{counts.repeated_line_documents:,} changed, {counts.repeated_line_bytes:,} bytes cut"
        )


def _has_accepted(work: Workspace) -> bool:
    """Return whether a corpus was ever accepted, and so has ids of the run's tokenizer."""
    known = work.state.corpora.values()
    return any(c.sequences or work.store.exists(manifest_key(c.name)) for c in known)


def _check_landed(work: Workspace, name: str) -> LandedCorpus | None:
    """Return the corpus if the inbox has it as it landed; None where it is ingested already."""
    if work.store.exists(manifest_key(name)):
        return None  # its files may have been removed since
    listing = work.state.corpora[name].listing
    landed = corpora.check_landed(work.store, work.inbox, name, listing)
    if landed.ignored:
        first, more = corpora.escape_text(landed.ignored[0]), len(landed.ignored) - 1
        others = f" and {more:,} more files" if more else ""
        work.log(f"warning: {name} is what it landed with; {first}{others} beside it: ignored")
    return landed


def _warn_of_misfit(work: Workspace, manifest: CorpusManifest) -> None:
    """Warn when the tokenizer, made for the first corpus, fits this one badly."""
    first = next((name for name in usable(work.state) if name != manifest.name), None)
    if first is not None:
        warning = corpora.fit_warning(corpora.read_manifest(work.store, first), manifest)
        if warning is not None:
            advice = f"stages.corpora.{manifest.name}.extend_tokenizer brings entries for such text"
            brought = manifest.name in work.state.extensions
            work.log(f"warning: {warning}" + ("" if brought else f"; {advice}"))


def _tokenise(
    work: Workspace, name: str, landed: LandedCorpus | None, settings: IngestSettings
) -> CorpusManifest:
    # Imported here: it loads pyarrow and Ray Data, which a look at the run's state needs not.
    from perennial.corpora.ingest.pipeline import ingest_corpus

    lender = open_run_store(work.spec.corpora.borrow) if work.spec.corpora.borrow else None
    if lender is not None:
        corpora.borrow_tokenizer(work.store, lender)
    work.log(f"ingesting {name}")
    if settings.tokens is not None:
        more = "".join(
            f", and {what} of the run file is not done" for what in _left_out(work, name)
        )
        work.log(
            f"notice: {name} is token ids: near duplicates of held-out documents are not looked "
            f"for, equal ones among ids alone; bits per byte are not measured{more}"
        )
    cpus = work.workers.make_room()
    if cpus >= 1 and (shortage := describe_shortage()):
        work.log(f"notice: {shortage}")
    if work.spec.tokenizer.path is not None:
        _import_tokenizer(work)
    elif work.spec.tokenizer.vocabulary is not None and settings.tokens is None:
        vocabulary = work.spec.tokenizer.vocabulary
        corpora.train_tokenizer(work.store, work.inbox, name, vocabulary, settings, landed)
    tokenizer = tokenizer_for(work, name, landed, settings)
    return ingest_corpus(
        work.store,
        work.inbox,
        name,
        settings,
        earlier=[other for other in usable(work.state) if other != name],
        decontaminate=[Path(p) for p in work.spec.corpora.decontaminate if not settings.tokens],
        evaluation_settings=_settings(work.spec.corpora, work.spec.seed),
        lender=lender,
        landed=landed,
        tokenizer=tokenizer,
        cpus_per_task=cpus,
        accept=lambda manifest: stage_steps(work.spec, name, manifest.rows),
    )


def _left_out(work: Workspace, name: str) -> list[str]:
    """Return what the run file asks of text and a corpus of token ids goes without."""
    spec = work.spec.corpora
    declared = spec.tokens_of(name)
    named = () if declared is None else declared.without
    return [f"corpora.{what}" for what in named if getattr(spec, what)]


def settings_of(work: Workspace, name: str) -> IngestSettings:
    """Return the settings of the ingest of a corpus of text."""
    return _settings(work.spec.corpora.for_corpus(name), work.spec.seed)


def _settings(spec: CorporaSpec, seed: int) -> IngestSettings:
    """Return the settings of an ingest; raise InputError for steps that cannot be used."""
    steps = tuple(step.describe() for step in spec.steps)
    StepPipeline(steps)
    fill = spec.fill_in_the_middle
    return corpora.IngestSettings(
        text_field=spec.text_field,
        domain_field=spec.domain_field,
        metadata=spec.metadata,
        parts=spec.parts,
        txt_documents=spec.txt_documents,
        max_document_bytes=spec.max_document,
        max_window_bytes=spec.max_zstd_window,
        sequence_length=spec.sequence_length,
        seed=seed,
        holdout_share=spec.holdout,
        max_bad_share=spec.max_bad_share,
        duplicates=spec.duplicates,
        near_duplicates=spec.near_duplicates,
        fuzzy_duplicates=spec.fuzzy_duplicates,
        repeated_lines=spec.repeated_lines,
        steps=steps,
        packing=spec.packing,
        fill_in_the_middle=None if fill is None else FillInTheMiddle(**fill.model_dump()),
    )


def _import_tokenizer(work: Workspace) -> None:
    spec = work.spec.tokenizer
    assert spec.path is not None
    is_new = not work.store.exists(MANIFEST_KEY)
    tokenizer = corpora.import_tokenizer(
        work.store, spec.path, spec.end_of_document, spec.begin_of_document
    )
    if is_new:
        work.log(f"tokenizer {spec.path}: {tokenizer.describe_borders()}")


def usable(state: RunState) -> list[str]:
    """Return the tokenised corpora that were not refused or erased, in the order of landing."""
    left_out = ("refused", "erased")
    return [c.name for c in state.corpora.values() if c.sequences and c.state not in left_out]
