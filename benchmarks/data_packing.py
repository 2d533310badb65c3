"""What packing cuts, pads and costs, and what the records of documents beside the rows add.

    PYTHONPATH=platform:. python benchmarks/data_packing.py > build/data_packing.md

Text is real: Python source of this Python and its packages, a file a document, with an id and a
url as metadata. Ingests run in one process without Ray. Times are of the CPU; `packing` is the
packer's part of an ingest, beside the CPU of the engine that makes the ids.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from perennial.corpora import CorpusManifest, IngestSettings, land, load_tokenizer, train_tokenizer
from perennial.corpora.encoders import make_encoder
from perennial.corpora.packers import make_packer
from perennial.store import Store, open_store
from tests.support.plain_ingest import ingest_plainly

LENGTHS = (256, 2048, 8192)
VOCABULARY = 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=64)
    asked = parser.parse_args()
    print(f"`{' '.join(['python', *sys.argv])}`  ")
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Path(folder, "store"))
        texts = list(_list_sources(asked.megabytes << 20))
        _land(store, Path(folder, "code.jsonl"), texts)
        size = sum(map(len, texts)) / 1e6
        middle = int(median(map(len, texts)))
        print(f"{len(texts):,} documents, {size:.0f} MB, {middle:,} characters in the middle\n")
        _print_packing(store, texts)
        _print_records(store)
    print(f"{os.cpu_count()} cores; load {os.getloadavg()[0]:.1f} at the end")


def _list_sources(size_bytes: int) -> Iterator[str]:
    seen: set[int] = set()
    folders = [Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib")]
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    random.Random(1).shuffle(files)
    for path in files:
        text = path.read_text(errors="replace")
        if text.strip() and hash(text) not in seen:
            seen.add(hash(text))
            size_bytes -= len(text)
            yield text
        if size_bytes < 0:
            return


def _land(store: Store, file: Path, texts: list[str]) -> None:
    with file.open("w") as stream:
        for i, text in enumerate(texts):
            record = {"text": text, "id": f"doc-{i}", "url": f"https://example.org/{i}.py"}
            stream.write(json.dumps(record) + "\n")
    inbox = store.sub("inbox")
    land(inbox, "code", [file])
    train_tokenizer(store, inbox, "code", VOCABULARY, IngestSettings(sequence_length=256, seed=1))


def _ingest(store: Store, **settings: Any) -> CorpusManifest:
    store.remove("corpora/code")
    settings = {"seed": 1, "near_duplicates": None, "holdout_share": 0.001, **settings}
    return ingest_plainly(store, store.sub("inbox"), "code", IngestSettings(**settings))


def _print_packing(store: Store, texts: list[str]) -> None:
    """Print the shares that packing cuts and pads, and the packer's CPU beside the engine's."""
    tokenizer = load_tokenizer(store)
    encoder = make_encoder(tokenizer, "tiktoken")
    began = time.process_time()
    ids = encoder.encode_documents([text.encode(errors="replace") for text in texts])
    encoding = time.process_time() - began
    print("| packing | tokens of a row | documents cut | padding | packer's CPU of the engine's |")
    print("| --- | --- | --- | --- | --- |")
    for packing in ("concat", "best-fit"):
        for length in LENGTHS:
            counts = _ingest(store, packing=packing, sequence_length=length).counts
            settings = IngestSettings(sequence_length=length, seed=1, packing=packing)
            share = _time_packer(settings, ids, tokenizer.end_of_document) / encoding
            cut = counts.cut_documents / counts.trained_documents
            padding = counts.padding_tokens / (counts.padding_tokens + counts.row_tokens)
            print(f"| `{packing}` | {length:,} | {cut:.1%} | {padding:.2%} | {share:.1%} |")


def _time_packer(settings: IngestSettings, ids: np.ndarray[Any, Any], end: int) -> float:
    """Return the CPU seconds of packing ids, the middle of three times."""
    times = []
    for _ in range(3):
        packer, began = make_packer(settings, "shard-00000", ids.dtype, end), time.process_time()
        for _ in packer.add(ids):
            pass
        for _ in packer.finish():
            pass
        times.append(time.process_time() - began)
    return median(times)


def _print_records(store: Store) -> None:
    """Print the bytes of the files that say which documents lie in which rows."""
    print("\n| `corpora.metadata` | bytes a stretch | of the shards' bytes |\n| --- | --- | --- |")
    for columns in ((), ("id", "source", "url")):
        manifest = _ingest(store, sequence_length=2048, metadata={name: name for name in columns})
        spans = sum(file.spans for file in manifest.documents)
        size = sum(file.size_bytes for file in manifest.documents)
        shards = sum(file.size_bytes for file in manifest.shards)
        name = f"`[{', '.join(columns)}]`" if columns else "none"
        print(f"| {name} | {size / spans:.0f} | {size / shards:.1%} |")


if __name__ == "__main__":
    main()
