"""Pass 1 against an inbox that is not what was listed."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

import pytest

from perennial.corpora.ingest.losses import FileLoss
from perennial.corpora.ingest.partition import plan_pieces
from perennial.corpora.ingest.quality import account_losses
from perennial.corpora.ingest.read import BadRecord, PieceResult, ScatterJob, scatter_piece
from perennial.corpora.manifest import IngestSettings, InputFile
from perennial.store import LocalStore, Store, open_store
from tests.support.refusal import refused

SETTINGS = IngestSettings(sequence_length=8, seed=0)


@pytest.mark.parametrize("reason", ["changed", "vanished"])
def test_I5_a_file_that_is_not_what_was_listed_is_quarantined_and_its_neighbours_are_read(
    tmp_path: Path, reason: str
) -> None:
    inbox, staging = open_store(tmp_path / "inbox"), open_store(tmp_path / "staging")
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        inbox.write(name, b'{"text": "one"}\n{"text": "two"}\n')
    inputs = tuple(
        InputFile(name=i.key, size_bytes=i.size_bytes, etag=i.etag) for i in inbox.list("")
    )
    inbox.remove("b.jsonl")
    if reason == "changed":
        inbox.write("b.jsonl", b'{"text": "eno"}\n{"text": "owt"}\n')
    job = ScatterJob(inbox, staging, inputs, SETTINGS, shards=3)
    (piece,) = plan_pieces(inputs, SETTINGS.piece_bytes)
    result = scatter_piece(job, 0, piece)
    loss = FileLoss(file=1, offset=0, reason=reason, lost_bytes=inputs[1].size_bytes)
    expected = PieceResult(
        runs=1,
        documents=5,
        quarantined={reason: 1},
        losses=(loss,),
        documents_by_file={0: 2, 2: 2},
        first={reason: BadRecord(file=1, offset=0, detail="")},
    )
    assert result == expected
    (estimated,) = account_losses(inputs, [result]).losses
    assert estimated.lost_documents in (2, 3)
    # Done is done: the marker answers, whatever the inbox holds by now.
    inbox.remove("a.jsonl")
    assert scatter_piece(job, 0, piece) == expected


def test_what_a_task_holds_is_bounded_however_large_its_file(tmp_path: Path) -> None:
    inbox, staging = open_store(tmp_path / "inbox"), open_store(tmp_path / "staging")
    inbox.write("a.txt", b"a paragraph of some text\n\n" * 4000)
    info = inbox.info("a.txt")
    inputs = (InputFile(name="a.txt", size_bytes=info.size_bytes, etag=info.etag),)
    settings = SETTINGS.model_copy(update={"piece_bytes": 100_000})
    job = ScatterJob(inbox, staging, inputs, settings, shards=2)
    (piece,) = plan_pieces(inputs, settings.piece_bytes)
    assert scatter_piece(job, 0, piece).runs == 9
    assert len([i for i in staging.list("") if i.key.endswith(".run")]) == 9


CONTENT = b'{"text": "one"}\n{"text": "two"}\n'
ALTERED = b'{"text": "one"}\n{"text": "owt"}\n'


def promised_job(folder: Path, inbox: Store) -> ScatterJob:
    """A piece of two files whose digest was promised."""
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    inputs = tuple(
        InputFile(name=i.key, size_bytes=i.size_bytes, etag=i.etag, sha256=sha256)
        for i in inbox.list("")
    )
    return ScatterJob(inbox, open_store(folder / "staging"), inputs, SETTINGS, shards=3)


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (lambda inbox: inbox.remove("b.jsonl"), "file-vanished", "there is no such file"),
        (
            lambda inbox: inbox.write("b.jsonl", ALTERED),
            "file-changed",
            f"found sha256 {hashlib.sha256(ALTERED).hexdigest()}",
        ),
        (
            lambda inbox: inbox.write("b.jsonl", CONTENT * 2),
            "file-changed",
            f"found {2 * len(CONTENT)} bytes",
        ),
    ],
)
def test_I10_a_file_that_is_not_what_was_promised_refuses_the_corpus(
    tmp_path: Path, change: Callable[[Store], object], code: str, says: str
) -> None:
    inbox = open_store(tmp_path / "inbox")
    for name in ("a.jsonl", "b.jsonl"):
        inbox.write(name, CONTENT)
    job = promised_job(tmp_path, inbox)
    change(inbox)
    (piece,) = plan_pieces(job.inputs, SETTINGS.piece_bytes)
    with refused(code, "b.jsonl") as caught:
        scatter_piece(job, 0, piece)
    assert says in caught.value.problem
    assert f"{len(CONTENT)} bytes, sha256 {job.inputs[0].sha256}" in caught.value.problem


@dataclass(frozen=True)
class TornStore(LocalStore):
    """A folder whose first `spoilt` reads of b.jsonl give other bytes: a stand-in for a proxy."""

    spoilt: int = 0
    reads: list[str] = field(default_factory=list, compare=False)

    def open(self, key: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        if mode == "wb":
            return super().open(key, mode)
        self.reads.append(key)
        if self.reads.count("b.jsonl") <= self.spoilt and key == "b.jsonl":
            return io.BytesIO(b'{"text": "one"}\n{"text: "two"}\n"')
        return super().open(key, mode)


@pytest.mark.parametrize("spoilt", [1, 2])
def test_I10_a_spoilt_reading_is_repeated_before_a_sound_line_is_set_aside(
    tmp_path: Path, spoilt: int
) -> None:
    inbox = TornStore(str(tmp_path / "inbox"), spoilt)
    for name in ("a.jsonl", "b.jsonl"):
        inbox.write(name, CONTENT)
    job = promised_job(tmp_path, inbox)
    (piece,) = plan_pieces(job.inputs, SETTINGS.piece_bytes)
    if spoilt == 2:
        with refused("file-changed", "b.jsonl"):
            scatter_piece(job, 0, piece)
        return
    result = scatter_piece(job, 0, piece)
    assert (result.documents, result.quarantined) == (4, {})
    assert inbox.reads.count("b.jsonl") == 2
