"""The size of a corpus does not bound the memory of its ingest."""

from __future__ import annotations

import json
import os
import random
import threading
from pathlib import Path
from pydoc_data.topics import topics

import psutil
import pytest

from perennial.corpora import IngestSettings, land, train_tokenizer
from perennial.corpora.ingest.pipeline import ingest_corpus
from perennial.store import open_store

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600), pytest.mark.usefixtures("ray_local")]

SIZE_BYTES = int(os.environ.get("PERENNIAL_LONG_INGEST_BYTES", 2_000_000_000))
HEAP_BYTES = 512 << 20
"""of a worker: its libraries, and one piece or one shard of text with its index"""
SETTINGS = IngestSettings(
    sequence_length=1024, seed=1, shard_tokens=8 << 20, piece_bytes=32 << 20, max_bad_share=0.5
)


def write_text(file: Path, size_bytes: int) -> None:
    """Documents of shuffled words of real text, and between them one text again and again."""
    rng, words = random.Random(0), " ".join(topics.values()).split()
    written = 0
    with file.open("w") as stream:
        while written < size_bytes:
            start = rng.randrange(len(words) - 2000)
            text = " ".join(rng.sample(words[start : start + 2000], rng.randrange(100, 1500)))
            line = json.dumps({"text": text}) + "\n"
            same = json.dumps({"text": "the same text again and again " * 20}) + "\n"
            written += stream.write(line) + stream.write(same)


class HeapWatch(threading.Thread):
    """Measures the heap (anonymous memory) of Ray's workers until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.largest: dict[int, int] = {}
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(0.02):
            for child in psutil.Process().children(recursive=True):
                status = Path(f"/proc/{child.pid}/status")
                try:
                    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
                except OSError:
                    continue
                if fields["Name"].strip().startswith("ray::") and "RssAnon" in fields:
                    heap = int(fields["RssAnon"].split()[0]) << 10
                    self.largest[child.pid] = max(heap, self.largest.get(child.pid, 0))

    def stop(self) -> None:
        self._stopped.set()
        self.join()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_the_heap_of_an_ingest_is_bounded_whatever_the_size_of_the_corpus(tmp_path: Path) -> None:
    file = tmp_path / "large.jsonl"
    write_text(file, SIZE_BYTES)
    store = open_store(tmp_path / "store")
    inbox = store.sub("inbox")
    land(inbox, "large", [file])
    file.unlink()
    train_tokenizer(store, inbox, "large", 4096, SETTINGS)
    watch = HeapWatch()
    watch.start()
    manifest = ingest_corpus(store, inbox, "large", SETTINGS)
    watch.stop()
    assert manifest.counts.check().trained_bytes > 0.8 * SIZE_BYTES
    rows = [sum(shard.row_groups) for shard in manifest.shards]
    assert max(rows) < 1.2 * min(rows)
    assert watch.largest
    heaps = ", ".join(f"{heap >> 20} MiB" for heap in sorted(watch.largest.values()))
    print(
        f"\n{SIZE_BYTES:,} bytes, {manifest.counts.documents:,} documents; largest heaps: {heaps}"
    )
    assert max(watch.largest.values()) < HEAP_BYTES, watch.largest
