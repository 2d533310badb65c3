"""Documents are erased: rows keep their numbers, padding takes their place, counts add up."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perennial.audit.counts import check_contents
from perennial.audit.files import Contents, Reader, read_documents, read_holdout, read_quarantine
from perennial.corpora import (
    CorpusManifest,
    IngestSettings,
    import_tokenizer,
    land,
    load_tokenizer,
    read_landed,
)
from perennial.corpora.document_spans import read_spans
from perennial.corpora.erasing.mask import bury, find_documents, mask
from perennial.corpora.erasing.selection import Matcher, parse_documents
from perennial.corpora.erasing.tombstone import Tombstone, as_stretches
from perennial.corpora.manifest import DocumentsFile, HoldoutFile, QuarantineFile, manifest_key
from perennial.corpora.reuse import borrow_corpus
from perennial.mixture.row_reader import RowReader
from perennial.runs.job_factory import layout
from perennial.store import Store, open_store
from tests.support.plain_ingest import ingest_plainly
from tests.support.refusal import refused
from tests.support.small_tokenizers import byte_level_json

TEXTS = [f"document {n} is of person {n % 7}, {'word ' * (n % 23)}{n * n}" for n in range(240)]
DIGESTS = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in TEXTS]
SETTINGS = IngestSettings(
    sequence_length=32,
    seed=1,
    domain_field="of",
    parts="domain",
    metadata={"person": "person"},
    holdout_share=0.15,
    max_bad_share=0.2,
    shard_tokens=900,
    near_duplicates=None,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with the texts as corpus "mail", of two domains, and two records that are bad."""
    made, path = open_store(tmp_path / "store"), tmp_path / "mail.jsonl"
    lines = [
        json.dumps({"text": text, "of": f"d{n % 2}", "person": f"p{n % 7}"})
        for n, text in enumerate(TEXTS)
    ]
    path.write_text("\n".join([*lines, "not JSON", "{}"]) + "\n")
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(json.dumps(byte_level_json(400)))
    import_tokenizer(made, tokenizer)
    land(made.sub("inbox"), "mail", [path])
    ingest_plainly(made, made.sub("inbox"), "mail", SETTINGS)
    return made


def _manifest(store: Store) -> CorpusManifest:
    return CorpusManifest.model_validate_json(store.read(manifest_key("mail")))


def _erase(store: Store, *lines: Any) -> tuple[Tombstone, Matcher]:
    """Erase what the lines name and put the new manifest in place."""
    manifest = _manifest(store)
    data = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    queries = parse_documents("f", data.encode(), ["person", "domain"])
    matcher = Matcher(queries, [file.name for file in manifest.inputs])
    found = find_documents(store, manifest, load_tokenizer(store), matcher)
    tombstone = mask(store, manifest, found)
    assert tombstone.manifest is not None
    store.write(manifest_key("mail"), tombstone.manifest.model_dump_json().encode())
    return tombstone, matcher


def _rows(store: Store, manifest: CorpusManifest) -> np.ndarray:
    width = manifest.sequence_length * manifest.token_bytes
    reader = RowReader(store, {"mail": layout(manifest)}, width)
    data = reader.read([("mail", np.arange(manifest.rows))])
    return data.view(f"<u{manifest.token_bytes}")


def _check(store: Store, manifest: CorpusManifest) -> None:
    """Every document and token is counted (I5), in the files too."""
    manifest.counts.check()
    assert manifest.digest == manifest.compute_digest()
    assert sum(part.documents for part in manifest.parts) == manifest.counts.trained_documents
    readers: dict[type, Reader] = {
        DocumentsFile: read_documents, HoldoutFile: read_holdout, QuarantineFile: read_quarantine,
    }  # fmt: skip
    contents: list[Contents] = []
    for file in (*manifest.documents, *manifest.holdout, *manifest.quarantine):
        with store.open(f"corpora/mail/{file.file}") as stream:
            contents.append(readers[type(file)](stream))
    assert check_contents("mail", manifest, contents) == []


def test_padding_takes_the_place_of_a_document_and_all_else_stays(store: Store) -> None:
    before = _manifest(store)
    rows, spans = _rows(store, before), list(read_spans(store, before, range(before.rows)))
    wanted = {span.digest for span in spans[3::17]}
    tombstone, matcher = _erase(store, *wanted)
    after = _manifest(store)
    assert matcher.matched_lines == set(range(1, len(wanted) + 1))
    assert (tombstone.documents, tombstone.held_out) == (len(wanted), 0)
    assert {*tombstone.digests} == wanted
    for span in spans:
        if span.digest in wanted:
            rows[span.row, span.start : span.start + span.tokens] = before.end_of_document
    assert (_rows(store, after) == rows).all()
    assert (after.rows, after.part_rows) == (before.rows, before.part_rows)
    assert [s.row_groups for s in after.shards] == [s.row_groups for s in before.shards]
    kept = [span for span in spans if span.digest not in wanted]
    assert list(read_spans(store, after, range(after.rows))) == kept
    touched = {span.row for span in spans if span.digest in wanted}
    assert tombstone.rows == as_stretches(sorted(touched))
    assert all(store.exists(f"corpora/mail/{file.file}") for file in tombstone.removed)
    assert not {file.file for file in tombstone.removed} & {file.file for file in after.files}
    _check(store, after)


def test_a_document_is_named_by_its_text_its_place_or_what_is_kept_of_it(store: Store) -> None:
    spans = list(read_spans(store, _manifest(store), range(_manifest(store).rows)))
    trained = {span.digest: span for span in spans}
    by_text, by_place, *_ = (n for n, digest in enumerate(DIGESTS) if digest in trained)
    place = trained[DIGESTS[by_place]]
    persons = {digest for digest, span in trained.items() if span.metadata["person"] == "p5"}
    tombstone, matcher = _erase(
        store,
        {"text": TEXTS[by_text]},
        {"file": place.file, "offset": place.offset},
        {"person": "p5"},
        {"person": "p5", "domain": "none of this name"},
    )
    assert matcher.matched_lines == {1, 2, 3}
    assert {*tombstone.digests} == persons | {DIGESTS[by_text], DIGESTS[by_place]}
    assert tombstone.inputs == ("mail.jsonl",)
    _check(store, _manifest(store))


def test_a_line_of_trace_names_its_document(store: Store) -> None:
    span = next(read_spans(store, _manifest(store), range(_manifest(store).rows)))
    tombstone, _ = _erase(store, {"corpus": "mail"} | span.to_dict())
    assert tombstone.digests == (span.digest,)


def test_held_out_documents_and_bad_records_are_erased_too(store: Store) -> None:
    before = _manifest(store)
    trained = {s.digest for s in read_spans(store, before, range(before.rows))}
    held = [n for n, digest in enumerate(DIGESTS) if digest not in trained]
    assert before.counts.held_out_documents == len(held) > 3
    bad = [
        json.loads(line)
        for file in before.quarantine
        for line in store.read(f"corpora/mail/{file.file}").splitlines()
    ]
    place = {"file": bad[0]["file"], "offset": bad[0]["offset"]}
    tombstone, matcher = _erase(store, DIGESTS[held[0]], {"text": TEXTS[held[1]]}, place)
    after = _manifest(store)
    assert matcher.matched_lines == {1, 2, 3}
    assert (tombstone.documents, tombstone.held_out) == (2, 2)
    assert after.counts.held_out_documents == len(held) - 2
    assert after.counts.removed == before.counts.removed
    records = b"".join(store.read(f"corpora/mail/{f.file}") for f in after.quarantine)
    assert str(bad[0]["offset"]).encode() not in records
    _check(store, after)


def test_a_corpus_is_erased_twice_and_then_as_a_whole(store: Store) -> None:
    rows = _manifest(store).rows
    digests = sorted({s.digest for s in read_spans(store, _manifest(store), range(rows))})
    first, _ = _erase(store, digests[0])
    second, _ = _erase(store, digests[1])
    assert (first.number, second.number) == (0, 1)
    _check(store, _manifest(store))
    last = bury(_manifest(store))
    after = last.manifest
    assert after is not None
    assert (last.number, after.erased, after.files, after.rows) == (2, True, (), rows)
    after.counts.check()
    assert after.has_padding
    assert (_rows(store, after) == after.end_of_document).all()
    with pytest.raises(IndexError):
        RowReader(store, {"mail": layout(after)}, 64).read([("mail", np.array([rows]))])


def test_what_was_erased_is_not_borrowed_by_another_run(store: Store, tmp_path: Path) -> None:
    _erase(store, {"person": "p5"})
    landed = read_landed(store.sub("inbox"), "mail")
    other = open_store(tmp_path / "other")
    with refused("borrowed-corpus-erased"):
        borrow_corpus(other, store, landed, load_tokenizer(store), SETTINGS)
    assert other.list() == []


@pytest.mark.parametrize(
    "line",
    ["zz", "abc", "[]", "{}", '{"digest": 5}', '{"digest": "abc"}', '{"file": "a"}',
     '{"offset": 3}', '{"file": "a", "offset": -1}', '{"nick": "x"}', '{"person": 5}',
     '{"text": 5}', '{"metadata": 5}', "{", "[" * 100_000],
)  # fmt: skip
def test_a_line_that_names_no_document_is_refused_with_its_number(line: str) -> None:
    with refused("documents-unreadable", "line 3"):
        parse_documents("f", f"# a comment\n\n{line}\n".encode(), ["person"])


@pytest.mark.parametrize("data", [b"", b"# nothing\n\n", b"\xff"])
def test_a_file_without_a_document_is_refused(data: bytes) -> None:
    with refused("documents-unreadable"):
        parse_documents("f", data, [])
