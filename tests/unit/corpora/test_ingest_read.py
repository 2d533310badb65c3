"""Pass 1 against an inbox that is not what was listed."""

from __future__ import annotations

from pathlib import Path

import pytest

from perennial.corpora.ingest.partition import plan_pieces
from perennial.corpora.ingest.read import PieceResult, ScatterJob, scatter_piece
from perennial.corpora.manifest import IngestSettings, InputFile
from perennial.store import open_store

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
    lost = inputs[1].size_bytes
    expected = PieceResult(runs=1, documents=5, quarantined={reason: 1}, lost_bytes=lost)
    assert result == expected
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
