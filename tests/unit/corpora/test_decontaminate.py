"""Evaluation texts: read from files of any format, and identified by a digest."""

from __future__ import annotations

import gzip
import json
import unicodedata
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.corpora.comparing import split_words
from perennial.corpora.ingest.decontaminate import (
    RUN_WORDS,
    ContaminationIndex,
    read_evaluation_texts,
)
from perennial.corpora.manifest import IngestSettings
from tests.support.passages import PASSAGES, staged
from tests.support.refusal import refused

SETTINGS = IngestSettings(sequence_length=8, seed=0)


def test_texts_come_from_files_of_every_format(tmp_path: Path) -> None:
    lines = [{"text": "one", "id": "x"}, {"question": "two", "answers": ["three", {"is": "four"}]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    (tmp_path / "b.txt").write_bytes(b"five\r\nmore\r\n\r\n six \n\n\n\nseven")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"eight\n\nnine"))
    pq.write_table(pa.table({"text": ["ten", "one", " "]}), tmp_path / "d.parquet")
    texts = read_evaluation_texts(sorted(tmp_path.iterdir()), SETTINGS)
    words = ["one", "two", "three", "four", "five\nmore", "six", "seven", "eight", "nine", "ten"]
    assert texts.texts == tuple(sorted(words))
    assert texts.too_short == len(words)


def test_the_digest_is_the_one_that_earlier_versions_computed(tmp_path: Path) -> None:
    """It is part of a corpus's settings: another one would refuse the corpora of older stores."""
    (tmp_path / "a.jsonl").write_text('{"text": "caf\\u00e9"}\n["x", {"y": "z"}]\n')
    (tmp_path / "b.txt").write_text("one\ntwo\n\n \n\nthree\n")
    texts = read_evaluation_texts([tmp_path / "a.jsonl", tmp_path / "b.txt"], SETTINGS)
    assert texts.digest == "0758d44c23b636169d5f79e03e183526b81491823191a26b3645d50cc049c6cf"
    assert read_evaluation_texts([], SETTINGS).digest == ""


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("a.jsonl", b"{", "file-unreadable"),
        ("a.jsonl", b'"caf\xe9"', "file-unreadable"),
        ("a.txt.gz", b"not compressed", "file-unreadable"),
        ("a.txt.gz", gzip.compress(b"x" * 999, mtime=0)[:-9], "file-unreadable"),
        ("a.parquet", b"no parquet", "file-unreadable"),
        ("a.html", b"x", "format-unknown"),
        ("a.txt", None, "file-unreadable"),
    ],
)
def test_what_cannot_be_read_is_refused(
    tmp_path: Path, name: str, content: bytes | None, code: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with refused(code, "corpora.decontaminate"):
        read_evaluation_texts([tmp_path / name], SETTINGS)


@pytest.mark.parametrize("form", ["NFC", "NFKD"])
@pytest.mark.parametrize("language", PASSAGES)
def test_a_question_that_was_copied_whole_is_found_in_every_script(
    language: str, form: Literal["NFC", "NFKD"]
) -> None:
    question = PASSAGES[language]
    others = [text for other, text in PASSAGES.items() if other != language]
    # The passage has more than 13 words in every one of these languages, or the test says nothing.
    assert len(split_words(question.encode())) >= RUN_WORDS
    copied = f"(1) {unicodedata.normalize(form, question)} x"
    found = ContaminationIndex([question]).search(staged([*others, copied, copied.upper()]))
    assert list(found) == [len(others), len(others) + 1]


def test_the_run_that_is_found_is_the_first_of_13_words() -> None:
    words = [f"w{number}" for number in range(40)]
    index = ContaminationIndex([" ".join(words[:20]), " ".join(words[20:32]), "\ud800"])
    text = " ".join([*words[3:15], "between", *words[7:20], *words[20:32]])
    found = index.search(staged([text, " ".join(words[19:])]))
    assert found == {0: f"holds {' '.join(words[7:20])!r} of an evaluation text"}
    assert index.search(staged([" ".join(reversed(words)), ""])) == {}
    assert ContaminationIndex(["too short"]).search(staged(["too short"])) == {}
