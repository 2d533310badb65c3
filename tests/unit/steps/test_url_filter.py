"""Documents dropped by their URL, and the fields of documents that steps see, in every format."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.corpora.formats.base import FileSpan, Record
from perennial.corpora.formats.open import read_span
from perennial.corpora.ingest.sample import apply_steps
from perennial.corpora.manifest import IngestSettings, InputFile
from perennial.steps import STEPS, Dropped, StepPipeline
from perennial.steps.base import StepConfig
from perennial.store import open_store
from tests.support.refusal import refused

LISTS: dict[str, Any] = {
    "domains": ["bad.example", "XXX", "m\u00fcller.example"],
    "words": ["casino"],
    "substrings": ["porn", "two%20words"],
    "suffixes": [".pdf"],
}


def _step(**keys: Any) -> StepConfig:
    return STEPS["url-filter"].model_validate(keys)


def _judge(url: str, **keys: Any) -> str | Dropped:
    steps = StepPipeline([_step(**(keys or LISTS)).describe()])
    return steps.apply("a text", fields={"url": url})


@pytest.mark.parametrize(
    ("url", "reason", "found"),
    [
        ("https://bad.example/a", "domain", "bad.example"),
        ("http://user@www.BAD.example:8080/a?b", "domain", "bad.example"),
        ("www.bad.example.", "domain", "bad.example"),
        ("https://any.site.xxx/", "domain", "xxx"),
        ("https://good.example/best-casino/1", "word", "casino"),
        ("https://good.example/best%2Dca%73ino", "word", "casino"),
        ("https://freepornsite.example/", "substring", "porn"),
        ("https://good.example/paper.PDF?download=1", "suffix", "paper.PDF"),
        ("", "no-url", ""),
        ("bad.example/a//b", "domain", "bad.example"),
        ("bad.example#//", "domain", "bad.example"),
        ("https://M\u00dcLLER.example/", "domain", "xn--mller-kva.example"),
        ("https://xn--mller-kva.example/", "domain", "xn--mller-kva.example"),
        ("https://good.example/two%20words", "substring", "two words"),
    ],
)
def test_a_document_is_dropped_for_its_url(url: str, reason: str, found: str) -> None:
    result = _judge(url)
    assert isinstance(result, Dropped)
    assert result.reason == f"url-filter/{reason}"
    assert found in result.detail
    assert url in result.detail


@pytest.mark.parametrize(
    "url",
    [
        "https://good.example/a",
        "https://notbad.example/",
        "https://bad.example.org/",
        "https://good.example/casinos",
        "https://good.example/?file=a.pdf",
        "http://[broken/",
    ],
)
def test_what_only_looks_like_it_is_kept(url: str) -> None:
    assert _judge(url) == "a text"


def test_a_document_without_a_url_may_be_kept() -> None:
    assert _judge("", domains=["bad.example"], without_url="keep") == "a text"


def test_lists_are_read_from_files_whose_content_is_part_of_the_step(tmp_path: Path) -> None:
    file = tmp_path / "domains.txt"
    file.write_text("# a list of mine\nBad.example\n\n")
    keys = {"files": {"domains": str(file)}}
    assert isinstance(_judge("https://www.bad.example", **keys), Dropped)
    assert _judge("https://good.example/# a list of mine", **keys) == "a text"
    begun = _step(**keys).describe()
    file.write_text("# a list of mine\nbad.example\nworse.example\n")
    with refused("step-changed"):
        StepPipeline([begun])
    file.unlink()
    with refused("step-unusable", "corpora.steps"):
        _step(**keys).describe()


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("domains", "https://bad.example/"),
        ("domains", "*.bad.example"),
        ("domains", "bad.example/path"),
        ("domains", "0.0.0.0 bad.example"),
        ("words", "two-words"),
    ],
)
def test_an_entry_that_no_url_can_match_is_refused(name: str, entry: str, tmp_path: Path) -> None:
    with refused("step-unusable") as caught:
        _judge("https://bad.example", **{name: [entry]})
    assert f"url-filter.{name}: '{entry}' would match no URL" in str(caught.value)
    (tmp_path / "list").write_text(f"good.example\n{entry}\n" if name == "domains" else entry)
    with refused("step-unusable"):
        _judge("https://bad.example", files={name: str(tmp_path / "list")})


def test_a_filter_without_a_list_is_refused() -> None:
    with pytest.raises(ValueError, match="give at least one of domains"):
        _step()


DOCUMENTS: list[dict[str, Any]] = [
    {"text": "first", "url": "https://bad.example/1", "meta": {"title": "good"}},
    {"text": "second", "url": "https://good.example/2", "meta": {"title": "bad"}},
    {"text": "third", "url": None, "meta": {"title": "good"}},
]


def _write(folder: Path, name: str) -> None:
    path, table = folder / name, pa.Table.from_pylist(DOCUMENTS)
    lines = "".join(json.dumps(document) + "\n" for document in DOCUMENTS)
    match path.suffix:
        case ".jsonl":
            path.write_text(lines)
        case ".json":
            path.write_text(json.dumps(DOCUMENTS))
        case ".parquet":
            pq.write_table(table, path)
        case ".arrow":
            with pa.ipc.new_file(path, table.schema) as writer:
                writer.write_table(table)
        case ".csv":
            rows = (f"{d['text']},{d['url'] or ''},{d['meta']['title']}\n" for d in DOCUMENTS)
            path.write_text("text,url,meta.title\n" + "".join(rows))
        case ".warc":
            for document in DOCUMENTS:
                body = str(document["text"])
                head = f"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: {len(body)}\r\n"
                head += f"url: {document['url'] or ''}\r\nmeta.title: {document['meta']['title']}"
                with path.open("a", newline="") as stream:
                    stream.write(f"{head}\r\n\r\n{body}\r\n\r\n")
        case ".tar":
            with tarfile.open(path, "w") as archive:
                for number, document in enumerate(DOCUMENTS):
                    members = {"txt": str(document["text"]), "json": json.dumps(document)}
                    for suffix, content in members.items():
                        info = tarfile.TarInfo(f"{number}.{suffix}")
                        info.size = len(content)
                        archive.addfile(info, io.BytesIO(content.encode()))


def _read(folder: Path, name: str, steps: list[StepConfig]) -> list[Record]:
    _write(folder, name)
    store = open_store(folder)
    size = store.info(name).size_bytes
    described = tuple(step.describe() for step in steps)
    settings = IngestSettings(sequence_length=8, seed=0, steps=described)
    file = InputFile(name=name, size_bytes=size, etag=store.info(name).etag)
    pipeline = StepPipeline(described)
    records = read_span(store, file, FileSpan(0, 0, size), settings)
    return [apply_steps(pipeline, record, settings) for record in records]


OWN = "tests.support.own_step"
TITLE = {"fields": ["meta.title"]}
STEPS_BY_TITLE = [
    STEPS["call"].model_validate({"function": f"{OWN}:drop_by_title", **TITLE}),
    STEPS["datatrove"].model_validate({"block": f"{OWN}:TitleFilter", **TITLE}),
]


@pytest.mark.parametrize("by_title", STEPS_BY_TITLE, ids=["call", "datatrove"])
@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow", "a.tar", "a.warc"]
)
def test_steps_see_the_fields_that_they_name_in_every_format(
    tmp_path: Path, name: str, by_title: StepConfig
) -> None:
    by_url = _step(domains=["bad.example"], without_url="keep")
    found = [(record.text, record.reason) for record in _read(tmp_path, name, [by_url, by_title])]
    assert found[0] == (b"", "url-filter/domain")
    assert found[1][1].startswith(f"{by_title.kind}/")
    assert found[2] == (b"third", "")


def test_a_format_without_fields_has_documents_without_a_url(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a paragraph")
    (record,) = _read(tmp_path, "a.txt", [_step(domains=["bad.example"])])
    assert record.reason == "url-filter/no-url"


def test_steps_that_look_at_no_fields_are_described_as_before() -> None:
    described = STEPS["call"].model_validate({"function": f"{OWN}:shout"}).describe()
    assert set(described) == {"kind", "function", "parameters", "code"}
    assert IngestSettings(sequence_length=8, seed=0, steps=(described,)).other_fields == ()
