"""File formats: the built-in ones by suffix, and one that another package brings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perennial.corpora.formats.open import describe_suffixes, find_kind

CSV_FORMAT = '''
import csv
import io

from perennial.corpora.formats.base import MISSING_TEXT, FileFormat, Record, make_record


class CsvFormat(FileFormat):
    """A document is a row; an offset is a row's number."""

    suffixes = (".csv",)

    def read(self, part, settings):
        column = settings.text_field
        # Bytes that are not UTF-8 become surrogates, which make_record refuses for their row alone.
        lines = io.TextIOWrapper(part.stream, "utf-8", "surrogateescape", newline="")
        for number, row in enumerate(csv.DictReader(lines)):
            if column in row:
                yield make_record(number, row[column], None, settings)
            else:
                yield Record(number, reason=MISSING_TEXT, detail=f"no column {column!r}")
'''

USE = """
import gzip, json, sys
from pathlib import Path

from perennial.corpora.formats.open import describe_suffixes
from perennial.corpora.inbox import read_landed
from perennial.corpora.landing import land
from perennial.corpora.ingest.decontaminate import read_evaluation_texts
from perennial.corpora.ingest.partition import plan_pieces
from perennial.corpora.ingest.read import ScatterJob, scatter_piece
from perennial.corpora.manifest import IngestSettings, InputFile
from perennial.errors import InputError
from perennial.store import open_store

folder = Path(sys.argv[1])
settings = IngestSettings(sequence_length=8, seed=0)
content = b"id,text\\n1,one\\n2,two\\n3,\\n4,caf\\xe9\\n"
(folder / "a.csv").write_bytes(content)
(folder / "b.csv.gz").write_bytes(gzip.compress(content))
(folder / "items.csv").write_text("text\\nan item\\n")
inbox = open_store(folder / "inbox")
try:
    land(inbox, "en", [folder / "a.csv", folder / "b.csv.gz"])
except InputError as refused:
    print(json.dumps({"code": refused.code, "problem": refused.problem}))
    raise SystemExit(2)
files = read_landed(inbox, "en").files
inputs = tuple(InputFile(name=f.name, size_bytes=f.size_bytes, etag=f.etag) for f in files)
job = ScatterJob(inbox.sub("en"), open_store(folder / "staging"), inputs, settings, shards=1)
(piece,) = plan_pieces(inputs, settings.piece_bytes)
result = scatter_piece(job, 0, piece)
texts = read_evaluation_texts([folder / "items.csv"], settings).texts
print(json.dumps([describe_suffixes(), result.model_dump(), texts]))
"""


def use_package(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    """Install a package with a CSV format into `folder`, and land and read two files with it."""
    (folder / "outside.py").write_text(source)
    info = folder / "outside_formats-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-formats\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[perennial.formats]\ncsv = outside:CsvFormat\n")
    platform = Path(__file__).parents[3] / "platform"
    return subprocess.run(
        [sys.executable, "-c", USE, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{platform}:{folder}"},
    )


def test_another_package_brings_a_format(tmp_path: Path) -> None:
    done = use_package(tmp_path, CSV_FORMAT)
    assert done.returncode == 0, done.stderr
    suffixes, result, texts = json.loads(done.stdout)
    assert suffixes.startswith(".csv, .jsonl, .parquet or .txt (.csv, .jsonl and .txt also with")
    assert result["documents"] == 8
    assert result["quarantined"] == {"empty-text": 2, "invalid-utf8": 2}
    assert texts == ["an item"]


def test_a_format_that_takes_the_suffix_of_another_is_refused(tmp_path: Path) -> None:
    done = use_package(tmp_path, CSV_FORMAT.replace('".csv"', '".txt"'))
    assert done.returncode == 2, done.stderr
    refused = json.loads(done.stdout)
    assert refused["code"] == "plugin-suffix-taken"


def test_a_format_that_cannot_be_imported_is_refused(tmp_path: Path) -> None:
    done = use_package(tmp_path, "import no_such_module")
    assert done.returncode == 2, done.stderr
    assert json.loads(done.stdout)["code"] == "plugin-broken"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jsonl", (".jsonl", "", True, 1)),
        ("a.JSONL.GZ", (".jsonl", ".gz", False, 3)),
        ("a.txt", (".txt", "", False, 1)),
        ("a.txt.zst", (".txt", ".zst", False, 3)),
        ("a.parquet", (".parquet", "", True, 2)),
        ("a.parquet.gz", None),
        ("a.csv", None),
        ("a.gz", None),
        ("jsonl", None),
    ],
)
def test_a_name_says_the_format_and_the_compression(
    name: str, expected: tuple[str, str, bool, int] | None
) -> None:
    kind = find_kind(name)
    if kind is None:
        assert expected is None
    else:
        form, compression, splittable, expansion = expected or ("", "", False, 0)
        assert kind.format.suffixes == (form,)
        assert kind.compression == compression
        assert (kind.splittable, kind.expansion) == (splittable, expansion)


def test_messages_list_the_registered_suffixes() -> None:
    assert describe_suffixes() == (
        ".jsonl, .parquet or .txt (.jsonl and .txt also with .gz, .zst, .bz2 or .xz)"
    )
