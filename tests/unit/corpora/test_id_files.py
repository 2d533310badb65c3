"""Files of token ids: the same documents from every form, and a reason for what is none."""

from __future__ import annotations

import io
import json
import pickle
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perennial.corpora.formats.base import FileSpan, Record
from perennial.corpora.formats.open import read_span
from perennial.corpora.formats.token_ids import STORED
from perennial.corpora.manifest import IngestSettings, InputFile, TokenIds
from perennial.store import open_store
from tests.support.id_files import (
    flat,
    id_files,
    lines,
    megatron,
    megatron_index,
    numpy_file,
    parquet,
    write_all,
)
from tests.support.read_files import read_file

END, BEGIN, VOCABULARY = 7, 6, 5000
TOKENS = TokenIds(
    dtype="uint16", vocabulary=VOCABULARY, end_of_document=END, begin_of_document=BEGIN
)
SETTINGS = IngestSettings(sequence_length=8, seed=0, tokens=TOKENS, max_document_bytes=1200)
_DRAW = random.Random(3)
DOCUMENTS = [
    [_DRAW.randrange(8, VOCABULARY) for _ in range(_DRAW.choice([1, 2, 9, 60]))] for _ in range(40)
]
FORMS = id_files(DOCUMENTS, END)
SPLITTABLE = ["lines", "parquet", "parquet of packed rows", "npy", "bin", "megatron of sentences"]


def main_file(folder: Path, files: dict[str, bytes]) -> Path:
    """The file that holds the documents, beside what belongs to it."""
    return write_all(folder, files)[0]


def ids_of(records: list[Record]) -> list[list[int]]:
    assert not [r for r in records if r.reason], records
    return [np.frombuffer(record.text, dtype=STORED).tolist() for record in records]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_documents(tmp_path: Path, form: str) -> None:
    records = read_file(main_file(tmp_path, FORMS[form]), SETTINGS)
    assert ids_of(records) == DOCUMENTS
    offsets = [record.offset for record in records]
    assert offsets == sorted(set(offsets))


@pytest.mark.parametrize("form", SPLITTABLE)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(shares=st.lists(st.floats(0, 1), max_size=6))
def test_any_parts_give_every_document_once_at_its_offset(
    tmp_path: Path, form: str, shares: list[float]
) -> None:
    path = main_file(tmp_path, FORMS[form])
    size = path.stat().st_size
    cuts = tuple(sorted({int(size * share) for share in shares} - {0, size}))
    assert read_file(path, SETTINGS, cuts=cuts) == read_file(path, SETTINGS)


def test_an_index_holds_no_documents_and_needs_its_file(tmp_path: Path) -> None:
    path = write_all(tmp_path / "a", FORMS["megatron"])[1]
    assert read_file(path, SETTINGS) == []
    (alone,) = read_file(write_all(tmp_path / "b", {"x.idx": b"MMIDIDX"})[0], SETTINGS)
    assert (alone.reason, alone.lost_bytes) == ("unreadable", 7)


def test_begins_and_ends_are_no_part_of_a_document(tmp_path: Path) -> None:
    rows = [[BEGIN, 9, 10, END], [9, BEGIN, END], [END], [], [BEGIN], [11, END, END, 12]]
    records = read_file(tmp_path / "a.jsonl", SETTINGS, lines(rows))
    found = [r.reason or np.frombuffer(r.text, STORED).tolist() for r in records]
    empty = "empty-text"
    assert found == [[9, 10], [9, BEGIN], empty, empty, empty, [11], empty, [12]]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "bin", "npy", "megatron"])
def test_an_id_outside_of_the_vocabulary_costs_its_document_alone(
    tmp_path: Path, suffix: str
) -> None:
    documents = [[8, 9], [8, 9, VOCABULARY], [10], [-1, 8]]
    write: dict[str, Callable[[], dict[str, bytes]]] = {
        "jsonl": lambda: {"a.jsonl": lines(documents)},
        "parquet": lambda: {"a.parquet": parquet(documents)},
        "bin": lambda: {"a.bin": flat(documents[:3], END)},
        "npy": lambda: {"a.npy": numpy_file(documents, END, "<i4")},
        "megatron": lambda: megatron(documents[:3], END),
    }
    records = read_file(main_file(tmp_path, write[suffix]()), SETTINGS)
    bad = [r for r in records if r.reason]
    assert {r.reason for r in bad} == {"token-out-of-vocabulary"}
    assert bad[0] is records[1]
    assert bad[0].detail == f"id {VOCABULARY} at 2 of its document; ids are below {VOCABULARY}"
    assert len(records) - len(bad) == 2
    assert len(bad) == (1 if suffix in ("bin", "megatron") else 2)


NO_IDS: dict[str, tuple[object, str]] = {
    "text": ("some text", "ids-not-integers"),
    "floats": ([1.5, 2.0], "ids-not-integers"),
    "strings": (["8", "9"], "ids-not-integers"),
    "lists": ([[8], [9, 10]], "ids-not-integers"),
    "null inside": ([8, None], "ids-not-integers"),
    "null": (None, "missing-text"),
    "huge": ([2**70], "ids-not-integers"),
}


@pytest.mark.parametrize("kind", NO_IDS)
def test_what_is_no_list_of_ids_has_a_reason(tmp_path: Path, kind: str) -> None:
    value, reason = NO_IDS[kind]
    rows: list[Any] = [[8, 9], value, [10]]
    content = b"".join(json.dumps({"input_ids": row}).encode() + b"\n" for row in rows)
    records = read_file(tmp_path / "a.jsonl", SETTINGS, content)
    assert [r.reason for r in records] == ["", reason, ""]
    if kind in ("text", "floats", "null inside", "null"):
        types = {"text": pa.string(), "floats": pa.list_(pa.float64())}
        kind_of = types.get(kind, pa.list_(pa.int32()))
        cells = pa.array([None if kind == "text" else [], value, None], kind_of)
        pq.write_table(pa.table({"input_ids": cells}), tmp_path / "a.parquet")
        records = read_file(tmp_path / "a.parquet", SETTINGS)
        assert records[1].reason == reason
        assert len({r.offset for r in records}) == len(records) == 3


@pytest.mark.parametrize("name", ["a.bin", "a.npy"])
def test_ids_of_another_width_than_declared_are_not_read(tmp_path: Path, name: str) -> None:
    wide = flat(DOCUMENTS, END, "<u4")
    path = tmp_path / name
    (record,) = read_file(path, SETTINGS, wide, cuts=(len(wide) // 3, len(wide) // 2))
    assert (record.reason, record.lost_bytes) == ("unreadable", len(wide))
    assert "every second id is 0, as where ids of 4 bytes are read as uint16" in record.detail
    declared = TOKENS.model_copy(update={"dtype": "uint32"})
    right = SETTINGS.model_copy(update={"tokens": declared})
    assert ids_of(read_file(path, right)) == DOCUMENTS


def test_a_value_says_what_is_no_id_in_it(tmp_path: Path) -> None:
    rows: list[Any] = [[8, 9.0], [8, None], [-1, 2**63], "8 9"]
    content = b"".join(json.dumps({"input_ids": row}).encode() + b"\n" for row in rows)
    assert [record.detail for record in read_file(tmp_path / "a.jsonl", SETTINGS, content)] == [
        "float at 1 of its list; ids are integers",
        "NoneType at 1 of its list; ids are integers",
        "integers that no one type of 64 bits holds",
        "str that is no list of ids",
    ]
    sink = io.BytesIO()
    none = pa.table({"input_ids": pa.array([[], []], pa.list_(pa.int32(), 0))})
    with pa.ipc.new_file(sink, none.schema) as writer:
        writer.write_table(none)
    records = read_file(tmp_path / "a.arrow", SETTINGS, sink.getvalue())
    assert [record.reason for record in records] == ["empty-text"] * 2


def test_a_stream_without_ends_says_what_to_look_at(tmp_path: Path) -> None:
    content = np.full(3000, 9, dtype="<u2").tobytes()
    (record,) = read_file(tmp_path / "a.bin", SETTINGS, content)
    assert record.reason == "too-long"
    assert record.detail == (
        "a document of 3000 ids without the end of a document, id 7; is this its id, and its type?"
    )
    records = read_file(tmp_path / "b.bin", SETTINGS, content + flat([[], [8]], END))
    assert [r.reason for r in records] == ["too-long", ""]


class _Trap:
    """What unpickling would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("it was unpickled",))


def npy_of(array: Any) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=True)
    return sink.getvalue()


HOSTILE: dict[str, tuple[dict[str, bytes], str]] = {
    "pickled": ({"a.npy": npy_of(np.array([_Trap()], dtype=object))}, "an array of object"),
    "only a pickle": ({"a.npy": b"\x93NUMPY" + pickle.dumps(_Trap())}, ""),
    "floats": ({"a.npy": npy_of(np.ones(9))}, "an array of float64"),
    "two dimensions": ({"a.npy": npy_of(np.ones((3, 4), dtype="u2"))}, "2 dimensions"),
    "a cut header": ({"a.npy": numpy_file(DOCUMENTS, END)[:40]}, ""),
    "a cut array": ({"a.npy": numpy_file(DOCUMENTS, END)[:-100]}, "that its header states"),
    "half an id": ({"a.bin": flat(DOCUMENTS, END)[:-1]}, "it ends inside an id"),
    "no index": ({"a.bin": flat(DOCUMENTS, END), "a.idx": b"something else" * 9}, "does not begin"),
    "an empty index": ({"a.bin": flat(DOCUMENTS, END), "a.idx": b""}, "does not begin"),
    "another version": (
        {"a.bin": flat([[8]], END), "a.idx": megatron_index([2], [0, 1], version=3)},
        "version 3; version 1 is read",
    ),
    "ids that are floats": (
        {"a.bin": flat([[8]], END), "a.idx": megatron_index([2], [0, 1], code=7)},
        "type 7, which is none of ids",
    ),
    "a cut index": (
        {"a.bin": flat([[8]], END), "a.idx": megatron_index([2], [0, 1])[:-3]},
        "do not hold its 1 sequences",
    ),
    "a negative size": (
        {
            "a.bin": flat([[8], [9]], END),
            "a.idx": megatron_index([2, -2], [0, 1, 2], places=[0, 4]),
        },
        "sequence 1 has a size or a place that does not fit",
    ),
    "a place of its own": (
        {"a.bin": flat([[8], [9]], END), "a.idx": megatron_index([2, 2], [0, 1, 2], places=[0, 0])},
        "sequence 1 has a size",
    ),
    "bounds that go back": (
        {"a.bin": flat([[8], [9]], END), "a.idx": megatron_index([2, 2], [0, 2, 1, 2])},
        "its sequences are not behind each other",
    ),
    "bounds behind the end": (
        {"a.bin": flat([[8], [9]], END), "a.idx": megatron_index([2, 2], [0, 2**40, 2])},
        "its sequences are not behind each other",
    ),
    "a cut file": (
        {"a.bin": flat([[8], [9]], END)[:6], "a.idx": megatron_index([2, 2], [0, 1, 2])},
        "the file ends before its documents do",
    ),
    "more than is listed": (
        {"a.bin": flat([[8], [9]], END), "a.idx": megatron_index([2], [0, 1])},
        "4 bytes behind the last document of its .idx",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_becomes_a_record_of_what_is_lost(tmp_path: Path, kind: str) -> None:
    files, said = HOSTILE[kind]
    path = main_file(tmp_path, files)
    records = read_file(path, SETTINGS)
    bad = [r for r in records if r.reason]
    assert bad[-1].reason == "unreadable"
    assert bad[-1].is_loss
    assert said in bad[-1].detail
    assert len({r.offset for r in records}) == len(records)
    if kind in ("a negative size", "a place of its own", "a cut file"):
        assert ids_of(records[:1]) == [[8]]
        assert (bad[-1].lost_documents, bad[-1].lost_bytes) == (1, path.stat().st_size - 4)


def test_spoilt_files_end_in_records_with_increasing_offsets(tmp_path: Path) -> None:
    draw = random.Random(5)
    for turn in range(300):
        files = dict(FORMS[draw.choice(["megatron", "megatron of sentences", "npy", "parquet"])])
        name = draw.choice(list(files))
        content = bytearray(files[name])
        for _ in range(draw.choice([1, 3])):
            place = draw.randrange(len(content))
            content[place : place + draw.choice([0, 1, 8])] = draw.randbytes(draw.choice([1, 8]))
        files[name] = bytes(content)
        records = read_file(main_file(tmp_path / str(turn), files), SETTINGS)
        offsets = [record.offset for record in records]
        assert all(offset >= 0 for offset in offsets)
        assert offsets == sorted(offsets)
        assert len(set(offsets)) == len(offsets)


@pytest.mark.parametrize("form", ["bin", "npy", "megatron", "parquet"])
def test_a_large_file_is_read_in_bounded_memory(tmp_path: Path, form: str) -> None:
    document = list(range(10, 4000)) * 60  # a quarter of a million ids
    few = [document] * 3
    ids = np.array(document, dtype="<u2")
    file = {
        "bin": lambda: {"a.bin": flat(few, END) * 20},
        "npy": lambda: {"a.npy": npy_of(np.frombuffer(flat(few, END) * 20, dtype="<u2"))},
        "megatron": lambda: {
            "a.bin": flat(few, END) * 20,
            "a.idx": megatron_index([len(ids) + 1] * 60, list(range(61))),
        },
        "parquet": lambda: {"a.parquet": parquet([ids.tolist()] * 60, pa.list_(pa.uint16()))},
    }[form]()
    path = main_file(tmp_path, file)
    del file
    wide = SETTINGS.model_copy(update={"max_document_bytes": 4 << 20})
    store = open_store(tmp_path)
    info = store.info(path.name)
    listed = InputFile(name=path.name, size_bytes=info.size_bytes, etag=info.etag)
    span = FileSpan(0, 0, info.size_bytes)
    tracemalloc.start()
    count = sum(len(record.text) // 4 for record in read_span(store, listed, span, wide))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 60 * len(document)  # 29 MB of 2 bytes an id
    assert most < 12 << 20


def test_text_and_ids_are_told_apart_by_what_the_corpus_declares(tmp_path: Path) -> None:
    text = SETTINGS.model_copy(update={"tokens": None})
    (record,) = read_file(tmp_path / "a.bin", text, flat(DOCUMENTS, END))
    assert (record.reason, record.detail) == (
        "unknown-format",
        "it holds token ids; declare them: corpora.read.NAME.tokens",
    )
    (record,) = read_file(tmp_path / "a.txt", SETTINGS, b"some text")
    assert (record.reason, record.lost_documents) == ("unknown-format", 0)
