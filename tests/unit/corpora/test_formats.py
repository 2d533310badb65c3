"""File formats: the built-in ones by suffix, and one that another package brings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perennial.corpora.formats.open import describe_suffixes, find_kind

FORTUNE_FORMAT = (
    Path(__file__).parents[2] / "support/plugin_package/perennial_extras/fortune_format.py"
).read_text()

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
content = b"one\\n%\\ntwo\\n%\\n \\n%\\ncaf\\xe9\\n"
(folder / "a.fortune").write_bytes(content)
(folder / "b.fortune.gz").write_bytes(gzip.compress(content))
(folder / "items.fortune").write_text("an item\\n")
inbox = open_store(folder / "inbox")
try:
    land(inbox, "en", [folder / "a.fortune", folder / "b.fortune.gz"])
except InputError as refused:
    print(json.dumps({"code": refused.code, "problem": refused.problem}))
    raise SystemExit(2)
files = read_landed(inbox, "en").files
inputs = tuple(InputFile(name=f.name, size_bytes=f.size_bytes, etag=f.etag) for f in files)
job = ScatterJob(inbox.sub("en"), open_store(folder / "staging"), inputs, settings, shards=1)
(piece,) = plan_pieces(inputs, settings.piece_bytes)
result = scatter_piece(job, 0, piece)
texts = read_evaluation_texts([folder / "items.fortune"], settings).texts
print(json.dumps([describe_suffixes(), result.model_dump(), texts]))
"""


def use_package(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    """Install a package with a format into `folder`, and land and read two files with it."""
    (folder / "outside.py").write_text(source)
    info = folder / "outside_formats-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-formats\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[perennial.formats]\nfortune = outside:FortuneFormat\n")
    platform = Path(__file__).parents[3] / "platform"
    return subprocess.run(
        [sys.executable, "-c", USE, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{platform}:{folder}"},
    )


def test_another_package_brings_a_format(tmp_path: Path) -> None:
    done = use_package(tmp_path, FORTUNE_FORMAT)
    assert done.returncode == 0, done.stderr
    suffixes, result, texts = json.loads(done.stdout)
    assert ".feather, .fortune, .idx" in suffixes.partition("(")[0]
    assert result["documents"] == 8
    assert result["quarantined"] == {"empty-text": 2, "invalid-utf8": 2}
    assert texts == ["an item"]


def test_a_format_that_takes_the_suffix_of_another_is_refused(tmp_path: Path) -> None:
    done = use_package(tmp_path, FORTUNE_FORMAT.replace('".fortune"', '".txt"'))
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
        ("a.ndjson.gz", (".ndjson", ".gz", False, 3)),
        ("c4-train.00000.json.gz", (".json", ".gz", False, 3)),
        ("a.json", (".json", "", True, 1)),
        ("CC-MAIN-2024.warc.wet.gz", (".wet", ".gz", False, 3)),
        ("a.tar.zst", (".tar", ".zst", False, 3)),
        ("a.TSV", (".tsv", "", False, 1)),
        ("a.feather", (".feather", "", False, 1)),
        ("a.html", None),
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
        assert form in kind.format.suffixes
        assert kind.compression == compression
        assert (kind.splittable, kind.expansion) == (splittable, expansion)


@pytest.mark.parametrize("short", ["tgz", "tbz2", "txz", "tzst", "TGZ"])
def test_a_compressed_archive_has_a_short_name_too(short: str) -> None:
    endings = {"tgz": ".gz", "tbz2": ".bz2", "txz": ".xz", "tzst": ".zst"}
    kind = find_kind(f"part-0.{short}")
    assert kind == find_kind(f"part-0.tar{endings[short.lower()]}")
    assert kind is not None


def test_messages_list_the_registered_suffixes() -> None:
    assert describe_suffixes() == (
        ".arrow, .bin, .csv, .feather, .idx, .json, .jsonl, .ndjson, .npy, .parquet, .tar, .tsv, "
        ".txt, .warc or .wet "
        "(all but .bin, .idx, .npy and .parquet also with .gz, .zst, .bz2 or .xz)"
    )
