"""A corpus from landing to its manifest, through a real Ray, on a folder and on S3 alike (I8)."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from traceback import format_exception
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.audit.counts import check_contents
from perennial.audit.files import (
    QuarantineContents,
    Reader,
    read_documents,
    read_file,
    read_holdout,
    read_quarantine,
)
from perennial.causes import is_storage_full
from perennial.corpora import (
    CorpusManifest,
    IngestSettings,
    LandedCorpus,
    borrow_tokenizer,
    fit_warning,
    land,
    load_tokenizer,
    read_landed,
    read_manifest,
    train_tokenizer,
)
from perennial.corpora.comparing import FORM
from perennial.corpora.counts import sum_counts
from perennial.corpora.ingest import pipeline
from perennial.corpora.ingest.pipeline import ingest_corpus
from perennial.store import Store, open_store
from tests.support.refusal import refused
from tests.support.small_disk import remount, small_disk

pytestmark = pytest.mark.usefixtures("ray_local")

FOLDER_AND_LONG_S3 = ["local", pytest.param("s3", marks=pytest.mark.long)]
"""Of what takes many requests, the server's turn is among the longest tests."""

# Some of the texts are near duplicates of each other.
SETTINGS = IngestSettings(
    sequence_length=64, seed=1, shard_tokens=40_000, domain_field="topic", near_duplicates=None
)
TEXTS = [text[i : i + 1500] for text in topics.values() for i in range(0, len(text), 1500)]


def write_files(folder: Path) -> list[Path]:
    """The same kind of documents in every format."""
    docs = [{"text": text, "topic": f"t{i % 3}"} for i, text in enumerate(TEXTS)]
    part = len(docs) // 4
    lines = [json.dumps(doc) + "\n" for doc in docs]
    (folder / "a.jsonl").write_text("".join(lines[:part]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[part : 2 * part]).encode()))
    pq.write_table(
        pa.Table.from_pylist(docs[2 * part : 3 * part]), folder / "c.parquet", row_group_size=20
    )
    plain = "\n\n".join(re.sub(r"\n\s*\n", "\n", text).strip("\n") for text in TEXTS[3 * part :])
    (folder / "d.txt.zst").write_bytes(pa.compress(plain.encode(), "zstd").to_pybytes())
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture
def store(store_url: str) -> Store:
    return open_store(store_url)


def prepared(store: Store, files: list[Path], settings: IngestSettings = SETTINGS) -> Store:
    """The inbox with corpus "en" landed, and the store with its tokenizer."""
    inbox = store.sub("inbox")
    land(inbox, "en", files)
    train_tokenizer(store, inbox, "en", 1000, settings)
    return inbox


def digests(store: Store) -> dict[str, str]:
    """sha256 of every file of the corpus except the manifest, which holds ETags."""
    folder = store.sub("corpora/en")
    return {
        info.key: hashlib.sha256(folder.read(info.key)).hexdigest()
        for info in folder.list("")
        if info.key != "manifest.json"
    }


def local(folder: Path, name: str) -> Store:
    return open_store(folder / name)


def test_I8_a_landed_corpus_becomes_shards_with_a_manifest(
    store: Store, files: list[Path], tmp_path: Path
) -> None:
    inbox = prepared(store, files)
    seen: list[tuple[str, int, int]] = []
    manifest = ingest_corpus(store, inbox, "en", SETTINGS, progress=lambda *a: seen.append(a))
    assert read_manifest(store, "en") == manifest
    assert seen[0] == ("read", 1, 1)
    assert seen[-1] == ("write", len(manifest.shards), len(manifest.shards))
    assert len(manifest.shards) > 1
    # Nothing is left of the way there, and every file is the one that the manifest names.
    assert digests(store) == {file.file: file.sha256 for file in manifest.files}
    # The same on a local folder, whatever this store is.
    other = local(tmp_path, "other")
    again = ingest_corpus(other, prepared(other, files), "en", SETTINGS)
    assert again.digest == manifest.digest
    assert digests(other) == digests(store)


def test_I5_the_counts_add_up_and_the_rows_hold_the_documents(
    tmp_path: Path, files: list[Path]
) -> None:
    store = local(tmp_path, "store")
    manifest = ingest_corpus(store, prepared(store, files), "en", SETTINGS)
    counts = manifest.counts.check()
    assert counts.documents >= len(TEXTS)
    assert counts.row_tokens == manifest.tokens == manifest.rows * 64
    assert counts.remainder_tokens < 64 * len(manifest.shards)
    assert 0.2 < (manifest.tokens_per_byte or 0) < 0.6
    assert (manifest.engine, manifest.token_bytes) == ("tiktoken", 2)
    tokenizer = load_tokenizer(store)
    folder, ends, held_bytes = store.sub("corpora/en"), 0, 0
    for shard in manifest.shards:
        with folder.open(shard.file) as stream:
            rows = pq.read_table(stream)["tokens"].to_pylist()
        ids = np.frombuffer(b"".join(rows), dtype="<u2").reshape(-1, 64)
        assert len(ids) == sum(shard.row_groups)
        ends += int((ids == tokenizer.end_of_document).sum())
        text = tokenizer.build().decode(ids.ravel().tolist(), skip_special_tokens=False)
        whole = text.split("<|endoftext|>")[1:-1]
        assert {"".join(document.split()) for document in whole} <= {
            "".join(document.split()) for document in TEXTS
        }
    assert counts.trained_documents - len(manifest.shards) <= ends <= counts.trained_documents
    for file in manifest.holdout:
        with folder.open(file.file) as stream:
            table = pq.read_table(stream)
        assert table.column_names == ["tokens", "bytes", "domain"]
        assert table.num_rows == file.documents
        for row in table.to_pylist():
            ids = np.frombuffer(row["tokens"], dtype="<u2")
            assert ids[-1] == tokenizer.end_of_document
            assert len(tokenizer.build().decode(ids[:-1].tolist()).encode()) == row["bytes"]
            assert row["domain"] in ("t0", "t1", "t2", "")
            held_bytes += row["bytes"]
    assert held_bytes == counts.held_out_bytes > 0


def test_the_output_is_the_same_for_any_parallelism_and_piece_size(
    tmp_path: Path, files: list[Path]
) -> None:
    store = local(tmp_path, "one")
    first = ingest_corpus(store, prepared(store, files), "en", SETTINGS, cpus_per_task=1)
    pieces: list[int] = []
    other = local(tmp_path, "two")
    cut = SETTINGS.model_copy(update={"piece_bytes": 20_000})
    second = ingest_corpus(
        other,
        prepared(other, files),
        "en",
        cut,
        cpus_per_task=2,
        progress=lambda _, __, tasks: pieces.append(tasks),
    )
    assert max(pieces) > 5
    assert digests(other) == digests(store)
    assert second.digest == first.digest


def test_documents_are_spread_over_all_shards(tmp_path: Path) -> None:
    file = tmp_path / "dated.jsonl"
    file.write_text("".join(json.dumps({"text": f"day {i:05d}"}) + "\n" for i in range(4000)))
    store = local(tmp_path, "store")
    settings = IngestSettings(sequence_length=8, seed=1, shard_tokens=5000, holdout_share=0)
    manifest = ingest_corpus(store, prepared(store, [file], settings), "en", settings)
    assert len(manifest.shards) == 5
    decoder = load_tokenizer(store).build()
    for shard in manifest.shards:
        with store.open(f"corpora/en/{shard.file}") as stream:
            rows = pq.read_table(stream)["tokens"].to_pylist()
        text = decoder.decode(np.frombuffer(b"".join(rows), dtype="<u2").tolist(), False)
        days = [int(d.split()[1]) for d in text.split("<|endoftext|>")[1:-1]]
        for part in (days, days[: len(days) // 4], days[-len(days) // 4 :]):
            assert abs(np.mean(part) - 2000) < 300
        assert abs(np.corrcoef(days, np.arange(len(days)))[0, 1]) < 0.15


@pytest.mark.parametrize("store_url", FOLDER_AND_LONG_S3, indirect=True)
def test_I6_an_ingest_that_was_killed_half_way_resumes_to_the_same(
    store: Store, files: list[Path], tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"piece_bytes": 60_000})
    undisturbed = local(tmp_path, "undisturbed")
    expected = ingest_corpus(undisturbed, prepared(undisturbed, files, settings), "en", settings)

    class Killed(Exception):
        pass

    def kill_at(phase: str, count: int) -> Callable[[str, int, int], None]:
        def progress(now: str, done: int, _all: int) -> None:
            if (now, done) == (phase, count):
                raise Killed

        return progress

    inbox = prepared(store, files, settings)
    for phase, count in (("read", 1), ("read", 3), ("write", 1), ("write", 2)):
        with pytest.raises(Killed):
            ingest_corpus(store, inbox, "en", settings, progress=kill_at(phase, count))
        with refused("corpus-not-ingested"):
            read_manifest(store, "en")
    written = {i.key: i for i in store.list("corpora/en") if "shard-" in i.key}
    assert written
    lost = min(written)
    store.remove(lost)
    manifest = ingest_corpus(store, inbox, "en", settings)
    assert manifest.digest == expected.digest
    assert digests(store) == digests(undisturbed)
    kept = {i.key: i for i in store.list("corpora/en") if i.key in written and i.key != lost}
    assert kept == {key: info for key, info in written.items() if key != lost}


def test_an_ingested_corpus_is_not_ingested_again(tmp_path: Path, files: list[Path]) -> None:
    store = local(tmp_path, "store")
    inbox = prepared(store, files)
    manifest = ingest_corpus(store, inbox, "en", SETTINGS)
    before = store.list("corpora")
    inbox.remove("en")
    assert ingest_corpus(store, inbox, "en", SETTINGS) == manifest
    assert store.list("corpora") == before
    for change in ({"seed": 2}, {"sequence_length": 32}, {"duplicates": "drop"}):
        other = SETTINGS.model_copy(update=change)
        with refused("ingested-differently", next(iter(change))):
            ingest_corpus(store, inbox, "en", other)


def test_a_corpus_is_borrowed_from_a_run_that_tokenised_the_same_files(
    tmp_path: Path, files: list[Path], store: Store
) -> None:
    lender = local(tmp_path, "lender")
    inbox = prepared(lender, files)
    lent = ingest_corpus(lender, inbox, "en", SETTINGS)
    borrow_tokenizer(store, lender)
    other = SETTINGS.model_copy(update={"seed": 2})
    with refused("ingested-differently", "seed") as different:
        ingest_corpus(store, inbox, "en", other, lender=lender)
    assert different.value.where.startswith(lender.url)
    passes: list[str] = []
    borrowed = ingest_corpus(
        store, inbox, "en", SETTINGS, lender=lender, progress=lambda step, *_: passes.append(step)
    )
    assert borrowed == lent == read_manifest(store, "en")
    assert not passes, "nothing was tokenised again"
    assert digests(store) == digests(lender)
    # The same name for other files is not the same corpus.
    land(local(tmp_path, "second"), "en", files[:1])
    third = local(tmp_path, "third")
    borrow_tokenizer(third, lender)
    with refused("borrowed-files-differ"):
        ingest_corpus(third, local(tmp_path, "second"), "en", SETTINGS, lender=lender)
    assert not third.exists("corpora/en/manifest.json")


def test_an_altered_manifest_is_noticed(tmp_path: Path, files: list[Path]) -> None:
    store = local(tmp_path, "store")
    ingest_corpus(store, prepared(store, files), "en", SETTINGS)
    key = "corpora/en/manifest.json"
    content = json.loads(store.read(key))
    content["counts"]["documents"] += 1
    store.write(key, json.dumps(content).encode())
    with refused("manifest-altered"):
        read_manifest(store, "en")
    store.write(key, b"{}")
    with refused("manifest-unreadable"):
        read_manifest(store, "en")


def broken_files(folder: Path) -> dict[str, tuple[str, int]]:
    """One file of each broken kind; (reason, offset) of its bad part."""
    good = json.dumps({"text": "fine " * 50}) + "\n"
    cut = gzip.compress((good * 9).encode())
    content: dict[str, tuple[bytes, str, int]] = {
        "utf8.jsonl": (good.encode() + b'{"text": "caf\xe9"}\n', "invalid-utf8", len(good)),
        "half.jsonl": ((good + good[:20]).encode(), "invalid-json", len(good)),
        "cut.jsonl.gz": (cut[:-12], "truncated", -1),
        "none.jsonl": (b'{"body": "x"}\n' + good.encode(), "missing-text", 0),
        "number.jsonl": (b'{"text": 1}\n' + good.encode(), "text-not-string", 0),
        "empty.jsonl": (b"", "empty-file", 0),
        "long.jsonl": (b'{"text": "' + b"x" * 50_000_000 + b'"}\n', "too-long", 0),
        "fake.parquet": (b"not parquet", "unreadable", 0),
    }
    for name, (data, _, _) in content.items():
        (folder / name).write_bytes(data)
    return {name: (reason, offset) for name, (_, reason, offset) in content.items()}


def quarantined(store: Store, manifest: CorpusManifest) -> list[dict[str, Any]]:
    lines = [
        line
        for file in manifest.quarantine
        for line in store.read(f"corpora/en/{file.file}").splitlines()
    ]
    return [json.loads(line) for line in lines]


def accounts_hold(store: Store, manifest: CorpusManifest) -> None:
    """`perennial verify` finds no fault, and finds one when a record's reason is another."""
    folder = store.sub(f"corpora/{manifest.name}")
    readers: dict[str, Reader] = {f.file: read_holdout for f in manifest.holdout}
    readers |= {f.file: read_documents for f in manifest.documents}
    named = readers | {f.file: read_quarantine for f in manifest.quarantine}
    contents = [read_file(folder, key, reader).contents for key, reader in named.items()]
    found = [each for each in contents if each is not None]
    assert len(found) == len(named)
    assert check_contents("manifest.json", manifest, found) == []
    for reason in manifest.counts.removed:
        swapped = [
            replace(each, reasons=each.reasons - Counter([reason]) + Counter(["another"]))
            if isinstance(each, QuarantineContents) and each.reasons[reason]
            else each
            for each in found
        ]
        (finding,) = check_contents("manifest.json", manifest, swapped)
        assert f"records of {reason}" in str(finding)


def test_I5_a_file_that_vanished_or_changed_since_it_was_listed_is_quarantined(
    tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a corpus whose producer promised nothing; with a list the corpus is refused."""
    store = local(tmp_path, "store")
    for name in ("gone.jsonl", "other.jsonl"):
        jsonl(tmp_path / name, ["some text"])
    inbox = prepared(store, [*files, tmp_path / "gone.jsonl", tmp_path / "other.jsonl"])
    promised = read_landed(inbox, "en")
    inbox.write("en/_SUCCESS", b"")

    def listed(inbox: Store, name: str) -> LandedCorpus:
        found = read_landed(inbox, name)
        inbox.remove("en/gone.jsonl")
        inbox.write("en/other.jsonl", b'{"text": "more text"}\n')
        return found

    monkeypatch.setattr(pipeline, "read_landed", listed)
    settings = SETTINGS.model_copy(update={"max_bad_share": 0.5})  # 2 of 6 files
    manifest = ingest_corpus(store, inbox, "en", settings)
    counts = manifest.counts.check()
    records = {(r["file"], r["reason"], r["offset"]) for r in quarantined(store, manifest)}
    assert records == {("gone.jsonl", "vanished", 0), ("other.jsonl", "changed", 0)}
    assert counts.quarantined == {"changed": 1, "vanished": 1}
    assert counts.trained_documents + counts.held_out_documents >= len(TEXTS)
    accounts_hold(store, manifest)
    # The same inbox, against what its first marker promised.
    other = local(tmp_path, "promised")
    other.write("tokenizer/tokenizer.json", store.read("tokenizer/tokenizer.json"))
    other.write("tokenizer/manifest.json", store.read("tokenizer/manifest.json"))
    with refused("file-vanished", "gone.jsonl"):
        ingest_corpus(other, inbox, "en", SETTINGS, landed=promised)
    assert other.list("corpora") == []


def test_I5_broken_input_is_quarantined_by_reason_and_the_rest_is_ingested(
    tmp_path: Path, files: list[Path]
) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    expected = broken_files(folder)
    settings = SETTINGS.model_copy(update={"max_bad_share": 1.0})
    store = local(tmp_path, "store")
    inbox = prepared(store, [*files, *folder.iterdir()], settings)
    manifest = ingest_corpus(store, inbox, "en", settings)
    counts = manifest.counts.check()
    records = {record["file"]: record for record in quarantined(store, manifest)}
    assert records.keys() == expected.keys()
    for name, (reason, offset) in expected.items():
        assert records[name]["reason"] == reason
        assert offset in (-1, records[name]["offset"])
    assert sum(counts.quarantined.values()) == len(expected)
    assert sum(file.records for file in manifest.quarantine) == len(expected)
    accounts_hold(store, manifest)
    assert counts.trained_documents + counts.held_out_documents > len(TEXTS)


def test_a_corpus_with_too_much_bad_input_is_refused_as_a_whole(
    store: Store, files: list[Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text("half a line\n" * 10)
    inbox = prepared(store, [*files, bad])
    before = store.list("")
    with refused("too-much-bad", "max_bad_share") as corpus:
        ingest_corpus(store, inbox, "en", SETTINGS)
    first = "10 invalid-json, the first in bad.jsonl at 0: Expecting value"
    assert first in corpus.value.problem
    kept = [info for info in store.list("") if info not in before]
    assert [info.key for info in kept] == ["refused/en/quarantine-00000.jsonl"]
    assert f"{store.url}/refused/en" in corpus.value.remedy
    records = [json.loads(line) for line in store.read(kept[0].key).splitlines()]
    assert {(r["file"], r["reason"]) for r in records} == {("bad.jsonl", "invalid-json")}
    assert [r["offset"] for r in records] == list(range(0, 120, 12))
    # A corpus of that name that is sound has no need of it.
    settings = SETTINGS.model_copy(update={"max_bad_share": 1.0})
    assert len(quarantined(store, ingest_corpus(store, inbox, "en", settings))) == 10
    assert store.list("refused") == []


def test_a_file_that_was_lost_counts_by_its_bytes(tmp_path: Path, files: list[Path]) -> None:
    fake = tmp_path / "fake.parquet"
    fake.write_bytes(b"x" * 20_000)
    store = local(tmp_path, "store")
    inbox = prepared(store, [*files, fake])
    with refused("too-much-bad") as corpus:
        ingest_corpus(store, inbox, "en", SETTINGS)
    assert re.match(
        r"about .* of .* documents, 20000 of .* bytes and 1 of 5 files", corpus.value.problem
    )


def test_a_corpus_without_text_is_refused(tmp_path: Path, files: list[Path]) -> None:
    store = local(tmp_path, "store")
    inbox = prepared(store, files)
    blank = tmp_path / "blank.jsonl"
    blank.write_text('{"text": ""}\n')
    land(inbox, "blank", [blank])
    before = store.list("")
    with refused("no-text") as blank_corpus:
        ingest_corpus(store, inbox, "blank", SETTINGS)
    assert "1 empty-text, the first in blank.jsonl at 0" in blank_corpus.value.problem
    assert [info for info in store.list("") if not info.key.startswith("refused/")] == before


def test_exact_duplicates_are_counted_and_dropped_by_option(tmp_path: Path) -> None:
    file = tmp_path / "twice.jsonl"
    lines = [json.dumps({"text": f"text number {i % 300}"}) + "\n" for i in range(500)]
    file.write_text("".join(lines))
    found = {}
    for duplicates in ("keep", "drop"):
        settings = SETTINGS.model_copy(update={"duplicates": duplicates, "shard_tokens": 2000})
        store = local(tmp_path, duplicates)
        manifest = ingest_corpus(store, prepared(store, [file], settings), "en", settings)
        found[duplicates] = manifest.counts.check()
        records = quarantined(store, manifest)
        accounts_hold(store, manifest)
        assert len(records) == found[duplicates].duplicate_documents
    assert (found["keep"].repeats, found["keep"].duplicate_documents) == (200, 0)
    assert (found["drop"].repeats, found["drop"].duplicate_documents) == (200, 200)
    assert {(r["reason"], r["file"]) for r in records} == {("duplicate", "twice.jsonl")}
    offsets = np.cumsum([0, *map(len, lines)]).tolist()
    assert {r["offset"] for r in records} == set(offsets[300:500])
    assert all(
        r["detail"] == f"equals twice.jsonl at {offsets[offsets.index(r['offset']) - 300]}"
        for r in records
    )


def texts(count: int, words: int = 120, seed: int = 0) -> list[str]:
    """Texts of random words, no two of them alike."""
    rng, vocabulary = np.random.default_rng(seed), sorted({w for t in TEXTS for w in t.split()})
    return [" ".join(rng.choice(vocabulary, words)) for _ in range(count)]


def jsonl(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


def landed_and_ingested(
    store: Store, name: str, file: Path, settings: IngestSettings, **options: Any
) -> CorpusManifest:
    land(store.sub("inbox"), name, [file])
    if not store.exists("tokenizer/manifest.json"):
        train_tokenizer(store, store.sub("inbox"), name, 1000, settings)
    return ingest_corpus(store, store.sub("inbox"), name, settings, **options)


def test_I5_near_duplicates_of_held_out_documents_are_not_trained(tmp_path: Path) -> None:
    originals = texts(300)
    # Wrapped, with other punctuation, with one word changed, and (no longer a near
    # duplicate) with every third word changed.
    copies = [
        text.replace(" ", "\n", 40) if i % 3 == 0 else text.replace(" ", ", ", 20)
        for i, text in enumerate(originals)
    ]
    changed = [" ".join([*text.split()[:-1], "changed"]) for text in originals]
    others = [
        " ".join("other" if i % 3 == 0 else word for i, word in enumerate(text.split()))
        for text in originals
    ]
    file = jsonl(tmp_path / "near.jsonl", [*originals, *copies, *changed, *others])
    settings = IngestSettings(sequence_length=64, seed=1, shard_tokens=20_000, holdout_share=0.1)
    found = []
    for folder, piece_bytes in (("one", 64 << 20), ("two", 30_000)):
        cut = settings.model_copy(update={"piece_bytes": piece_bytes})
        store = local(tmp_path, folder)
        manifest = landed_and_ingested(store, "en", file, cut)
        found.append((manifest.digest, digests(store)))
    assert found[0] == found[1]
    counts = manifest.counts.check()
    lines = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    offsets = np.cumsum([0, *(len(line) + 1 for line in file.read_text().splitlines())]).tolist()
    records = quarantined(store, manifest)
    removed = [offsets.index(record["offset"]) for record in records]
    held = [i for i, text in enumerate(lines) if is_held_out(text, 0.1)]
    alike = {i + part * 300 for i in (h % 300 for h in held if h < 900) for part in range(3)}
    assert {record["reason"] for record in records} == {"near-duplicate-of-held-out"}
    assert all(re.fullmatch(r"[01]\.\d\d like near.jsonl at \d+", r["detail"]) for r in records)
    assert counts.near_duplicate_documents == len(records) == len(set(removed))
    assert manifest.comparing == FORM
    accounts_hold(store, manifest)
    assert set(removed) <= alike - set(held)
    assert len(removed) >= 0.99 * len(alike - set(held)) > 100


def is_held_out(text: str, share: float) -> bool:
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return digest < share * 2**64


@pytest.mark.parametrize(
    ("store_url", "duplicates"),
    [("local", "keep"), ("local", "drop"), pytest.param("s3", "drop", marks=pytest.mark.long)],
    indirect=["store_url"],
)
def test_texts_of_earlier_corpora_are_counted_and_dropped_by_option(
    store: Store, tmp_path: Path, duplicates: str
) -> None:
    all_texts = texts(400)
    settings = IngestSettings(
        sequence_length=64, seed=1, shard_tokens=8_000, near_duplicates=None
    ).model_copy(update={"duplicates": duplicates})
    first = jsonl(tmp_path / "a.jsonl", all_texts[:200])
    second = jsonl(tmp_path / "b.jsonl", all_texts[150:300])
    third = jsonl(tmp_path / "c.jsonl", [*all_texts[100:], *all_texts[:30], all_texts[399]])
    landed_and_ingested(store, "a", first, settings)
    landed_and_ingested(store, "b", second, settings, earlier=["a"])
    manifest = landed_and_ingested(store, "en", third, settings, earlier=["a", "b"])
    counts = manifest.counts.check()
    assert counts.repeats_of_earlier == {"a": 130, "b": 100}
    assert counts.repeats == 1
    assert [each.name for each in manifest.earlier] == ["a", "b"]
    records = quarantined(store, manifest)
    dropped = 231 if duplicates == "drop" else 0
    assert counts.duplicate_documents == len(records) == dropped
    assert counts.trained_documents + counts.held_out_documents == 331 - dropped
    if dropped:
        kinds = [record["detail"].rsplit(" ", 1)[0] for record in records]
        assert kinds.count("equals a document of corpus") == 230
        assert kinds.count("equals c.jsonl at") == 1


def test_a_text_that_is_repeated_makes_no_shard_larger_than_the_others(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "same.jsonl", [*texts(50), *["the same again and again"] * 20_000])
    settings = IngestSettings(sequence_length=64, seed=1, shard_tokens=30_000)
    store = local(tmp_path, "store")
    manifest = landed_and_ingested(store, "en", file, settings)
    rows = [sum(shard.row_groups) for shard in manifest.shards]
    assert len(rows) > 4
    assert max(rows) < 1.25 * min(rows)
    assert manifest.counts.repeats == 19_999


def test_I5_documents_with_a_piece_of_an_evaluation_text_are_not_trained(tmp_path: Path) -> None:
    clean, items = texts(200), texts(10, words=20, seed=1)
    dirty = [
        clean[0] + " " + " ".join(items[0].split()[3:16]).upper().replace(" ", ",\n"),
        items[1] + clean[1],
        clean[2] + " " + " ".join(re.findall(r"\w+", items[2])[:12]) + " end",
    ]
    jsonl(tmp_path / "items.jsonl", items[1:])
    (tmp_path / "items.txt").write_text(f"{items[0]}\n\ntoo short\n")
    paths = [tmp_path / "items.jsonl", tmp_path / "items.txt"]
    file = jsonl(tmp_path / "docs.jsonl", [*clean, *dirty])
    settings = IngestSettings(
        sequence_length=64, seed=1, shard_tokens=8_000, holdout_share=0, near_duplicates=None
    )
    store = local(tmp_path, "store")
    manifest = landed_and_ingested(store, "en", file, settings, decontaminate=paths)
    counts = manifest.counts.check()
    records = quarantined(store, manifest)
    assert counts.contaminated_documents == len(records) == 2
    assert {record["reason"] for record in records} == {"contaminated"}
    accounts_hold(store, manifest)
    runs = {record["detail"].split("'")[1] for record in records}
    named = " ".join(re.findall(r"\w+", items[0].casefold()))
    assert all(len(run.split()) == 13 for run in runs)
    assert any(run in named for run in runs)
    again = landed_and_ingested(store, "en", file, settings, decontaminate=paths)
    assert again == manifest
    with refused("ingested-differently", "decontaminate"):
        landed_and_ingested(store, "en", file, settings)
    (tmp_path / "items.html").write_text("x")
    for name, code in (
        ("items.html", "format-unknown"),
        ("absent.txt", "file-unreadable"),
    ):
        with refused(code, "corpora.decontaminate"):
            landed_and_ingested(store, "fr", file, settings, decontaminate=[tmp_path / name])


def test_a_corpus_without_news_leaves_nothing_behind(tmp_path: Path) -> None:
    first, other = texts(200), texts(400, seed=1)
    held = [text for text in other if is_held_out(text, 0.5)]
    copies = [text.replace(" ", ", ", 20) for text in held]
    copies = [text for text in copies if not is_held_out(text, 0.5)]
    question = " ".join(texts(1, words=20, seed=2))
    (tmp_path / "items.txt").write_text(question)
    settings = IngestSettings(
        sequence_length=64, seed=1, holdout_share=0.5, near_duplicates=0.6, duplicates="drop"
    )
    store = local(tmp_path, "store")
    landed_and_ingested(store, "first", jsonl(tmp_path / "first.jsonl", first), settings)
    for name, documents, why in (
        ("known", [*first, ""], "200 duplicate, 1 empty-text"),
        ("held", held, f"{len(held)} held out"),
        (
            "near",
            [*held, *copies],
            f"{len(copies)} near-duplicate-of-held-out, {len(held)} held out",
        ),
        ("dirty", [f"{question} {i}" for i in range(9)], r"\d contaminated, \d held out"),
    ):
        file = jsonl(tmp_path / f"{name}.jsonl", documents)
        land(store.sub("inbox"), name, [file])
        before, passes = store.list(""), set[str]()
        with refused("nothing-new") as corpus:
            landed_and_ingested(
                store,
                name,
                file,
                settings,
                earlier=["first"],
                decontaminate=[tmp_path / "items.txt"],
                progress=lambda name, _done, _all, passes=passes: passes.add(name),
            )
        is_seen_by_digests = name in ("known", "held")
        assert passes == {"read", "compare"} if is_seen_by_digests else "write" in passes
        news = f"none of its {len(documents)} documents is new to train"
        assert re.fullmatch(rf"{news} \({why}\)", corpus.value.problem)
        assert store.list("") == before


def test_a_corpus_beside_earlier_ones_of_another_run_is_refused(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", texts(100))
    store = local(tmp_path, "store")
    landed_and_ingested(store, "a", file, SETTINGS)
    for change in ({"seed": 2}, {"sequence_length": 32}):
        other = SETTINGS.model_copy(update=change)
        with refused("ingested-differently", next(iter(change))) as different:
            landed_and_ingested(store, "b", file, other, earlier=["a"])
        assert different.value.where.endswith("corpora/a/manifest.json")
    store.remove("tokenizer")
    train_tokenizer(store, store.sub("inbox"), "a", 900, SETTINGS)
    with refused("ingested-differently", "tokenizer") as different:
        landed_and_ingested(store, "b", file, SETTINGS, earlier=["a"])
    assert different.value.where.endswith("corpora/a/manifest.json")


def test_a_tokenizer_that_fits_a_corpus_badly_gets_a_warning_with_both_numbers(
    tmp_path: Path,
) -> None:
    store = local(tmp_path, "store")
    english = landed_and_ingested(store, "a", jsonl(tmp_path / "a.jsonl", texts(100)), SETTINGS)
    file = jsonl(tmp_path / "b.jsonl", [f"{i} " + "日本語の文章 ёжик " * 20 for i in range(100)])
    other = landed_and_ingested(store, "b", file, SETTINGS)
    assert fit_warning(english, english) is None
    warning = fit_warning(english, other)
    assert warning is not None
    assert f"{english.tokens_per_byte:.3f}" in warning
    assert f"{other.tokens_per_byte:.3f}" in warning


def test_shard_counts_total_to_the_manifests(tmp_path: Path, files: list[Path]) -> None:
    store = local(tmp_path, "store")
    manifest = ingest_corpus(store, prepared(store, files), "en", SETTINGS)
    assert sum_counts([manifest.counts, manifest.counts]).tokens == 2 * manifest.counts.tokens
    assert manifest.total_bytes == manifest.counts.trained_bytes + manifest.counts.held_out_bytes
    assert {file.name for file in manifest.inputs} == {path.name for path in files}
    assert all(file.etag for file in manifest.inputs)


@pytest.mark.parametrize("store_url", FOLDER_AND_LONG_S3, indirect=True)
def test_of_two_ingests_at_once_nothing_is_lost_or_doubled(
    store: Store, files: list[Path], tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"piece_bytes": 60_000})
    alone = local(tmp_path, "alone")
    expected = ingest_corpus(alone, prepared(alone, files, settings), "en", settings)
    inbox = prepared(store, files, settings)
    with ThreadPoolExecutor(2) as pool:
        racing = [pool.submit(ingest_corpus, store, inbox, "en", settings) for _ in range(2)]
        found = [each.result().digest for each in racing]
    assert found == [expected.digest] * 2
    named = {file.file: file.sha256 for file in expected.files}
    assert {k: v for k, v in digests(store).items() if "staging" not in k} == named


@pytest.mark.long
def test_an_ingest_that_fills_the_disk_says_so_and_goes_on_when_there_is_room(
    files: list[Path], tmp_path: Path
) -> None:
    sound = local(tmp_path, "sound")
    inbox = prepared(sound, files)
    manifest = ingest_corpus(sound, inbox, "en", SETTINGS)
    with small_disk(tmp_path / "disk", 64) as disk:
        store = open_store(disk)
        borrow_tokenizer(store, sound)
        with pytest.raises(OSError, match="No space left on device") as caught:
            ingest_corpus(store, inbox, "en", SETTINGS)
        # As it was raised in the task, and with the task's traceback.
        assert caught.value.errno == errno.ENOSPC
        assert str(disk) in str(caught.value)
        assert "write" in "".join(format_exception(caught.value))
        assert is_storage_full(caught.value)
        remount(disk, "size=64m")
        assert ingest_corpus(store, inbox, "en", SETTINGS).digest == manifest.digest
        assert digests(store) == digests(sound)
