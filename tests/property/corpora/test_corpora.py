"""Ingest: nothing is dropped (I5), and the result depends on the inputs and the seed alone."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perennial.corpora import IngestSettings, LandedCorpus, RunTokenizer, import_tokenizer
from perennial.corpora.counts import Counts, sum_counts
from perennial.corpora.ingest.decontaminate import read_evaluation_texts
from perennial.corpora.ingest.exact_dedup import compare_digests
from perennial.corpora.ingest.jobs import IngestPlan
from perennial.corpora.ingest.partition import choose_piece_bytes, plan_pieces
from perennial.corpora.ingest.quality import account_losses
from perennial.corpora.ingest.read import scatter_piece
from perennial.corpora.ingest.write import gather_shard, write_holdout
from perennial.corpora.manifest import InputFile, ShardResult, token_bytes
from perennial.corpora.packing import RowGroups
from perennial.store import Store, open_store

END = 0


@cache
def byte_tokenizer() -> RunTokenizer:
    """A tokenizer of single bytes, so that ids can be turned back into text by hand."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {
        symbol: i + 1 for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    model = models.BPE(vocab={"<|endoftext|>": END, **vocabulary}, merges=[])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.json")
        path.write_text(tokenizer.to_str(), encoding="utf-8")
        return import_tokenizer(open_store(Path(folder, "store")), path)


def run(
    folder: Path, inbox: Store, config: IngestSettings, backwards: bool = False
) -> tuple[Counts, dict[str, str]]:
    """Both passes without Ray: the counts, and the sha256 of every file that was written."""
    inputs = tuple(
        InputFile(name=i.key, size_bytes=i.size_bytes, etag=i.etag)
        for i in inbox.sub("en").list("")
    )
    evaluation = read_evaluation_texts([], config)
    store = open_store(folder / "store")
    landed = LandedCorpus("en", (), datetime.now(UTC))
    plan = IngestPlan(store, inbox, landed, inputs, byte_tokenizer(), config, (), evaluation)
    target, layout, step = plan.target, plan.layout, -1 if backwards else 1
    pieces, first = plan_pieces(inputs, config.piece_bytes), plan.scatter_job()
    read = {i: scatter_piece(first, i, pieces[i]) for i in range(len(pieces))[::step]}
    staged = [read[i] for i in range(len(pieces))]
    second = plan.compare_job(staged)
    found = {part: compare_digests(second, part) for part in range(layout.digest_parts)[::step]}
    compared = [found[part] for part in range(layout.digest_parts)]
    last = plan.gather_job(staged, compared, "tokenizers", account_losses(inputs, staged).losses)
    results = [write_holdout(last, part) for part in range(layout.held_parts)[::step]]
    results += [gather_shard(last, shard) for shard in range(layout.shards)[::step]]
    counts = sum_counts([r.counts for r in compared] + [r.counts for r in results]).check()
    assert counts.documents == sum(piece.documents for piece in staged)
    target.remove(plan.staging_name)
    check_rows(target, results, config)
    digests = {i.key: hashlib.sha256(target.read(i.key)).hexdigest() for i in target.list("")}
    files = [*(r.file for r in compared), *(f for r in results for f in r.files)]
    assert digests == {f.file: f.sha256 for f in files}
    return counts, digests


def check_rows(target: Store, results: list[ShardResult], config: IngestSettings) -> None:
    """The row groups are those that the manifest names, and the column is plain."""
    for result in results:
        if result.shard is None:
            continue
        with target.open(result.shard.file) as stream:
            file = pq.ParquetFile(stream)
            groups = [file.metadata.row_group(g) for g in range(file.num_row_groups)]
            assert [g.num_rows for g in groups] == list(result.shard.row_groups)
            assert {g.column(0).compression for g in groups} == {"UNCOMPRESSED"}
            assert file.schema_arrow.field("tokens").type.byte_width == config.sequence_length * 2


def texts_of(target: Store) -> tuple[str, list[str]]:
    """The text of all rows, with its ends of documents, and the held-out documents' texts."""
    decoder = byte_tokenizer().build()
    rows, held = b"", []
    for info in target.list(""):
        if not info.key.startswith(("shard", "holdout")):
            continue
        with target.open(info.key) as stream:
            for value in pq.read_table(stream)["tokens"].to_pylist():
                if info.key.startswith("shard"):
                    rows += value
                else:
                    held.append(decoder.decode(np.frombuffer(value[:-2], dtype="<u2").tolist()))
    ids = np.frombuffer(rows, dtype="<u2").tolist()
    return decoder.decode(ids, skip_special_tokens=False), held


documents = st.lists(
    st.one_of(
        st.text(alphabet="ab é<|endoftxt>\n", min_size=1, max_size=30).map(lambda t: {"text": t}),
        st.sampled_from(
            [{"text": "again"}, {"text": ""}, {"body": "x"}, {"text": 5}, [1], {"text": "x" * 99}]
        ),
    ),
    min_size=1,
    max_size=60,
)
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def landed(folder: Path, docs: list[object], files: int) -> Store:
    inbox = open_store(folder / "inbox")
    for index in range(min(files, len(docs))):
        lines = [json.dumps(d, ensure_ascii=False) for d in docs[index::files]]
        inbox.write(f"en/{index}.jsonl", "\n".join(lines).encode())
    return inbox


@few
@given(docs=documents, files=st.integers(1, 3), seed=st.integers(0, 5), data=st.data())
def test_I5_the_result_does_not_depend_on_pieces_and_their_order(
    docs: list[object], files: int, seed: int, data: st.DataObject
) -> None:
    config = IngestSettings(
        sequence_length=8,
        seed=seed,
        holdout_share=data.draw(st.sampled_from([0.0, 0.2])),
        duplicates=data.draw(st.sampled_from(["keep", "drop"])),
        max_document_bytes=50,
        shard_tokens=data.draw(st.sampled_from([64, 200, 10_000])),
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inbox = landed(folder, docs, files)
        whole = run(folder / "whole", inbox, config)
        size = data.draw(st.integers(20, 400))
        cut = config.model_copy(update={"piece_bytes": size})
        assert run(folder / "cut", inbox, cut, backwards=True) == whole


@few
@given(docs=documents, duplicates=st.sampled_from(["keep", "drop"]))
def test_I5_every_document_is_trained_held_out_or_recorded(
    docs: list[object], duplicates: Literal["keep", "drop"]
) -> None:
    config = IngestSettings(
        sequence_length=2,
        seed=1,
        holdout_share=0.2,
        duplicates=duplicates,
        max_document_bytes=50,
    )
    good = [d["text"] for d in docs if isinstance(d, dict) and isinstance(d.get("text"), str)]
    good = [t for t in good if t.strip() and len(t.encode()) <= 50]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        counts, _ = run(folder, landed(folder, docs, 2), config)
        text, held = texts_of(open_store(folder / "store/corpora/en"))
        records = [
            json.loads(line)
            for info in open_store(folder / "store/corpora/en").list("")
            if info.key.endswith("jsonl")
            for line in open_store(folder / "store/corpora/en").read(info.key).splitlines()
        ]
    expected = Counter(good) if duplicates == "keep" else Counter(set(good))
    # The remainder is at most one token, so a last document may lack its end.
    trained = expected - Counter(held)
    assert counts.held_out_documents == len(held)
    assert counts.trained_documents == trained.total()
    assert set(held).isdisjoint(trained)
    assert counts.repeats == len(good) - len(set(good))
    joined = sum(len(t.encode()) + 1 for t in trained.elements())
    assert counts.row_tokens + counts.remainder_tokens == joined
    if counts.remainder_tokens == 0:
        ends = "<|endoftext|>"
        assert sorted(text) == sorted("".join(t + ends for t in trained.elements()))
    assert len(records) == counts.duplicate_documents + sum(counts.quarantined.values())
    assert counts.documents == len(docs)
    reasons = Counter(r["reason"] for r in records if r["reason"] != "duplicate")
    assert reasons == counts.quarantined


@few
@given(seeds=st.lists(st.integers(), min_size=2, max_size=2, unique=True))
def test_another_seed_is_another_order_of_the_same_documents(seeds: list[int]) -> None:
    docs: list[object] = [{"text": f"document {i}"} for i in range(50)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inbox = landed(folder, docs, 1)
        orders = []
        for seed in seeds:
            config = IngestSettings(sequence_length=2, seed=seed)
            run(folder / str(seed), inbox, config)
            text, held = texts_of(open_store(folder / str(seed) / "store/corpora/en"))
            orders.append((text.split("<|endoftext|>"), held))
    assert orders[0] != orders[1]
    assert sorted(orders[0][1]) == sorted(orders[1][1])
    assert orders[0][0] != [d["text"] for d in docs if isinstance(d, dict)]


@given(
    chunks=st.lists(st.lists(st.integers(0, 65535), max_size=40), max_size=20),
    length=st.integers(1, 9),
    rows=st.integers(1, 5),
)
def test_I5_packing_conserves_tokens_and_their_order(
    chunks: list[list[int]], length: int, rows: int
) -> None:
    packer = RowGroups(length, rows, np.uint16)
    groups = [
        group.copy() for ids in chunks for group in packer.add(np.array(ids, dtype=np.uint32))
    ]
    last, remainder = packer.finish()
    assert all(group.shape == (rows, length) for group in groups)
    assert len(last) < rows
    assert 0 <= remainder < length
    tokens = [token for ids in chunks for token in ids]
    packed = [token for group in [*groups, last] for token in group.ravel().tolist()]
    assert packed == tokens[: len(tokens) - remainder]
    assert len(packed) + remainder == len(tokens)


@given(
    sizes=st.lists(st.integers(0, 5000), max_size=20),
    piece=st.integers(1, 3000),
)
def test_I5_pieces_cover_every_byte_once(sizes: list[int], piece: int) -> None:
    names = ("a.jsonl", "b.parquet", "c.txt", "d.jsonl.gz")
    inputs = [
        InputFile(name=names[i % 4], size_bytes=size, etag="") for i, size in enumerate(sizes)
    ]
    pieces = plan_pieces(inputs, piece)
    spans = [span for each in pieces for span in each]
    for index, size in enumerate(sizes):
        mine = [(span.start, span.end) for span in spans if span.file == index]
        assert mine[0][0] == 0
        assert mine[-1][1] == size
        assert all(a[1] == b[0] for a, b in pairwise(mine))
    for each in pieces:
        assert len(each) == 1 or sum(s.end - s.start for s in each) <= piece


@given(
    sizes=st.lists(st.integers(0, 1 << 42), min_size=1, max_size=20),
    name=st.sampled_from(["a.jsonl", "b.parquet", "c.txt.gz"]),
)
def test_a_large_corpus_is_read_in_some_thousand_pieces_of_bounded_size(
    sizes: list[int], name: str
) -> None:
    inputs = [InputFile(name=name, size_bytes=size, etag="") for size in sizes]
    size = choose_piece_bytes(inputs, 64 << 20)
    assert 64 << 20 <= size <= 512 << 20
    factor = {"a.jsonl": 1, "b.parquet": 2, "c.txt.gz": 3}[name]
    assert sum(sizes) * factor // size <= max(4096 + 1, sum(sizes) * factor >> 29)


def test_ids_are_stored_in_as_few_bytes_as_hold_them() -> None:
    assert [token_bytes(v) for v in (257, 65_536, 65_537)] == [2, 2, 4]
