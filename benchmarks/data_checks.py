"""What comparing shards and landed files with their digests costs, beside reading without it.

A first pass over a corpus of shards of 64 MB, as a worker's read task makes it (without Ray, whose
cost is the same), and the reading of a landed file by an ingest. CPU is of all threads; every pass
is a process of its own. `--s3` the shards are in the tests' S3 server; its CPU does not count.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

SEQUENCE, BATCH = 1024, 32
SHARD_ROWS = (32 << 20) // SEQUENCE
TEXT = {"text": "a line of plain text, as long as lines of text are, " * 40}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--s3", action="store_true", help="the tests' S3 server, not a folder")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(_measure(json.loads(asked.one))))
        return
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        url, environment = _place(Path(scratch), asked.s3, stack)
        os.environ |= environment
        digests = _write(url, asked.shards)
        text = _write_text(url)
        arms = [
            {"name": f"shards, {how}, worker 1 of {workers}", "url": url, "workers": workers}
            | {"shards": asked.shards, "digests": digests if how == "compared" else []}
            for workers in (1, 4)
            for how in ("not compared", "compared")
        ]
        arms += [
            {"name": f"landed JSON lines, {how}", "url": url, "sha256": sha256}
            for how, sha256 in (("not compared", ""), ("compared", text))
        ]
        rows = {arm["name"]: [_run(arm) for _ in range(asked.rounds)] for arm in arms}
    print(f"`python {' '.join(sys.argv)}`\n")
    versions = ", ".join(f"{name} {version(name)}" for name in ("pyarrow", "numpy"))
    where = "S3" if asked.s3 else "local folder"
    print(f"{versions}; {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f} at the end; ", end="")
    print(f"{asked.shards} shards of 64 MB, {where}; medians of {asked.rounds}.\n")
    print("reading | CPU, s | seconds | first block, s")
    print("--- | --- | --- | ---")
    for name, results in rows.items():
        columns = (statistics.median(column) for column in zip(*results, strict=True))
        print(f"{name} | {' | '.join(f'{value:.2f}' for value in columns)}")


def _place(folder: Path, s3: bool, stack: ExitStack) -> tuple[str, dict[str, str]]:
    if not s3:
        return str(folder / "store"), {}
    from tests.support.s3_server import CephServer, MotoServer, _has_ceph

    (folder / "s3").mkdir()
    server = (CephServer if _has_ceph() else MotoServer)(folder / "s3")
    stack.callback(server.stop)
    return f"s3://{server.new_bucket()}/bench", server.environment()


def _write(url: str, shards: int) -> list[str]:
    """Write the shards; return their digests."""
    from perennial.corpora.packing import RowFile, rows_per_group
    from perennial.store import open_store

    store, numbers, digests = open_store(url), np.random.default_rng(0), []
    group = rows_per_group(SEQUENCE, 2)
    for shard in range(shards):
        with store.open(f"shard-{shard}", "wb") as stream:
            file = RowFile(stream, SEQUENCE, 2)
            for first in range(0, SHARD_ROWS, group):
                rows = min(group, SHARD_ROWS - first)
                file.write(numbers.integers(0, 1 << 16, (rows, SEQUENCE), dtype="<u2"))
            digests.append(file.close()[1])
    return digests


def _write_text(url: str) -> str:
    """Write a landed file of 64 MB; return its digest."""
    from perennial.store import open_store

    line = json.dumps(TEXT).encode() + b"\n"
    data = line * ((64 << 20) // len(line))
    open_store(url).write("text.jsonl", data)
    return hashlib.sha256(data).hexdigest()


def _run(arm: dict[str, Any]) -> list[float]:
    command = [sys.executable, __file__, "--one", json.dumps(arm)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: list[float] = json.loads(done.stdout)
    return result


def _measure(arm: dict[str, Any]) -> list[float]:
    """Return CPU seconds, seconds, and seconds to the first block, of one pass."""
    steps = _read_text(arm) if "sha256" in arm else _read_shards(arm)
    next(steps)  # imports and the opening of the store
    began, cpu, first = time.monotonic(), time.process_time(), 0.0
    for _ in steps:
        first = first or time.monotonic() - began
    return [time.process_time() - cpu, time.monotonic() - began, first]


def _read_shards(arm: dict[str, Any]) -> Any:
    from perennial.mixture import Source, StageMix
    from perennial.mixture.ray_stream import _RankBlocks
    from perennial.mixture.row_reader import CorpusLayout
    from perennial.store import open_store

    keys = tuple(f"shard-{shard}" for shard in range(arm["shards"]))
    layout = CorpusLayout(keys, (SHARD_ROWS,) * len(keys), tuple(arm["digests"]))
    steps = layout.rows // BATCH
    mix = StageMix(("a",), steps, BATCH, (Source("a", steps * BATCH, 0, layout.rows),))
    store = open_store(arm["url"])
    store.list("")
    blocks = _RankBlocks(store, {"a": layout}, mix, 2 * SEQUENCE, 0, arm["workers"], 0)
    yield None
    yield from blocks.tables()


def _read_text(arm: dict[str, Any]) -> Any:
    from perennial.corpora import IngestSettings
    from perennial.corpora.formats.base import FileSpan
    from perennial.corpora.formats.open import read_span
    from perennial.corpora.manifest import InputFile
    from perennial.store import open_store

    store = open_store(arm["url"])
    info = store.info("text.jsonl")
    file = InputFile(
        name=info.key, size_bytes=info.size_bytes, etag=info.etag, sha256=arm["sha256"]
    )
    settings = IngestSettings(sequence_length=SEQUENCE, seed=0)
    yield None
    yield from read_span(store, file, FileSpan(0, 0, info.size_bytes), settings)


if __name__ == "__main__":
    main()
