"""Sampling of a landed corpus: bounded, and the same sample every time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from perennial.corpora.file_list import ListedFile, escape_text, moved_file
from perennial.corpora.formats.base import CHANGED, VANISHED, Record, make_record
from perennial.corpora.formats.open import check_file_name, find_companions, read_span
from perennial.corpora.ingest.partition import digest_text, holdout_bound, plan_pieces
from perennial.corpora.manifest import IngestSettings, InputFile
from perennial.errors import Altered, InputMoved
from perennial.steps import Dropped, StepPipeline
from perennial.store import check_object

if TYPE_CHECKING:
    from perennial.corpora.formats.base import FileSpan
    from perennial.corpora.inbox import LandedCorpus
    from perennial.store import Store

_PARTS = 64
_FILES_AT_ONCE = 8


def list_inputs(landed: LandedCorpus) -> tuple[InputFile, ...]:
    """Return the files of a landed corpus as its ingest reads them.

    What programs left beside the data, such as the state.json of `datasets`, is none of them.
    """
    beside = find_companions(file.name for file in landed.files)
    return tuple(
        InputFile(name=escape_text(f.name), size_bytes=f.size_bytes, etag=f.etag, sha256=f.sha256)
        for f in landed.files
        if f.name not in beside
    )


def check_sampled(inbox: Store, landed: LandedCorpus, max_bytes: int) -> None:
    """Compare the files that a sample is taken from with the digests that were promised.

    For a sample that is used before the corpus is read as a whole.

    Args:
        inbox: the store that the corpus landed in.
        landed: the corpus.
        max_bytes: bytes of text of the sample, roughly.

    Raises:
        InputError: a file is gone or another one.
    """
    corpus, inputs = inbox.sub(landed.name), list_inputs(landed)

    def check(number: int) -> None:
        file = inputs[number]
        try:
            check_object(corpus, file.name, file.sha256)
        except Altered as altered:
            listed = ListedFile(file.name, file.size_bytes, file.sha256)
            if not altered.actual:
                actual = "there is no such file"
                raise moved_file(corpus.url, listed, VANISHED, actual) from None
            actual = f"found sha256 {altered.actual}"
            raise moved_file(corpus.url, listed, CHANGED, actual) from None

    numbers = {span.file for span in _choose_spans(inputs, max_bytes)}
    numbers = {number for number in numbers if not check_file_name(inputs[number].name)}
    with ThreadPoolExecutor(_FILES_AT_ONCE) as threads:
        list(threads.map(check, sorted(n for n in numbers if inputs[n].sha256)))


def sample_texts(
    inbox: Store, landed: LandedCorpus, settings: IngestSettings, max_bytes: int
) -> Iterator[str]:
    """Yield documents of evenly spread parts of a corpus.

    Held-out documents and unreadable parts are left out.

    Args:
        inbox: the store that the corpus landed in.
        landed: the corpus.
        settings: how documents are found in it.
        max_bytes: bytes of text to yield, roughly.
    """
    inputs = list_inputs(landed)
    chosen = _choose_spans(inputs, max_bytes)
    bound, corpus = holdout_bound(settings.holdout_share), inbox.sub(landed.name)
    taken, steps = 0, StepPipeline(settings.steps)
    for number, span in enumerate(chosen, start=1):
        # What short parts leave of their share goes to those after them.
        limit = max_bytes * number // len(chosen)
        try:
            for given in read_span(corpus, inputs[span.file], span, settings):
                if taken >= limit:
                    break
                record = apply_steps(steps, given, settings)
                digest = int.from_bytes(digest_text(record.text)[:8], "little")
                if not record.reason and digest >= bound:
                    taken += len(record.text)
                    yield record.text.decode()
        except InputMoved:
            continue


def sample_bad_records(
    inbox: Store, landed: LandedCorpus, settings: IngestSettings, max_bytes: int
) -> Iterator[tuple[int, Record]]:
    """Yield what is no document in the parts that `sample_texts` takes, with its file's number."""
    inputs, steps = list_inputs(landed), StepPipeline(settings.steps)
    for span in _choose_spans(inputs, max_bytes):
        try:
            for given in read_span(inbox.sub(landed.name), inputs[span.file], span, settings):
                record = apply_steps(steps, given, settings)
                if record.reason:
                    yield span.file, record
        except InputMoved as moved:
            yield span.file, Record(span.start, reason=moved.reason)


def apply_steps(steps: StepPipeline, record: Record, settings: IngestSettings) -> Record:
    """Return what the steps of the run file leave of a document, or the record of its drop.

    Args:
        steps: those of `settings`, built in this process.
        record: as it was read; one that is no document stays as it is.
        settings: bounds the size of the text that is left.
    """
    if record.reason or not settings.steps:
        return record
    # A format that knows no fields but the text gives none of them.
    pairs = zip(settings.other_fields, record.fields, strict=False)
    fields = {name: value or "" for name, value in pairs}
    result = steps.apply(record.text.decode(), record.domain, fields)
    if isinstance(result, Dropped):
        return record._replace(text=b"", reason=result.reason, detail=result.detail)
    return make_record(record.offset, result, record.domain, settings, record.fields)


def _choose_spans(inputs: Sequence[InputFile], max_bytes: int) -> list[FileSpan]:
    """Return evenly spread parts of the files of a corpus."""
    total = sum(file.size_bytes for file in inputs)
    part_bytes = max(1, total // _PARTS, max_bytes // _PARTS)
    spans = [span for piece in plan_pieces(inputs, part_bytes) for span in piece]
    parts = min(_PARTS, len(spans))
    return [spans[part * len(spans) // parts] for part in range(parts)]
