"""Make a folder of text as people get it, for docs/guide/from-a-crawl.md: real text, messy files.

Usage: python examples/messy_crawl.py TEXTS.jsonl FOLDER
TEXTS.jsonl has a {"text": ...} in each line, such as build/quickstart/text/english.jsonl.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterable
from pathlib import Path

_MENU = "Home | News | Sport | About us | Contact | Imprint\n"
_FOOTER = "\nWrite to editor@news.example.net about errors on this page.\n"


def main(texts: Path, folder: Path) -> None:
    documents = [json.loads(line)["text"] for line in texts.read_text("utf-8").splitlines()]
    crawled, dumped = documents[:1200], documents[1200:2400]
    pages = [f"{text}{_FOOTER}" for text in crawled] + [_MENU] * 60 + crawled[:100]
    _write(folder / "pages/2026-11/a.warc.wet.gz", b"".join(map(_as_wet, pages)))
    _write(folder / "pages/.cache/a.warc.wet.gz.metadata", b"etag: 1\n")
    _write(folder / "pages/_temporary/0/b.warc.wet.gz", b"".join(map(_as_wet, pages[:90])))
    half = len(dumped) // 2
    _write(folder / "dump/c4-train.00000.json.gz", _as_lines(dumped[:half]))
    whole = gzip.compress(_as_lines(dumped[half:]))
    # As a download that broke off leaves it; the whole file is beside the folder.
    _write(folder / "dump/c4-train.00001.json.gz", whole[: len(whole) // 3], packed=True)
    _write(folder / "again/c4-train.00001.json.gz", whole, packed=True)
    _write(folder / "dump/README.md", b"# A dump\n")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            print(f"{path.stat().st_size:9,}  {path.relative_to(folder)}")


def _as_wet(text: str) -> bytes:
    """Return a record of a web archive whose pages were converted to text."""
    body = text.encode()
    head = f"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body + b"\r\n\r\n"


def _as_lines(texts: Iterable[str]) -> bytes:
    documents = [{"text": text, "url": f"https://example.org/{n}"} for n, text in enumerate(texts)]
    return "".join(json.dumps({"doc": document}) + "\n" for document in documents).encode()


def _write(path: Path, data: bytes, *, packed: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" and not packed else data)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
