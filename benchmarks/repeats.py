"""CPU that `corpora.fuzzy_duplicates` and `corpora.repeated_lines` cost, beside the ingest without.

    PYTHONPATH=platform:. python benchmarks/repeats.py [MB] > build/repeats.md

One process, every pass without Ray, on synthetic text: documents of words drawn by Zipf's law, in
lines. Few are near copies and few lines come again, so that looking for them is paid and next to
nothing is saved by it. Times are of the CPU, not of the clock.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

from perennial.corpora import CorpusManifest, IngestSettings, land, train_tokenizer
from perennial.store import open_store
from tests.support.plain_ingest import ingest_plainly

SETTINGS = IngestSettings(sequence_length=2048, seed=1, max_bad_share=1)
VOCABULARY = 8000


def write_text(path: Path, megabytes: float) -> None:
    """Write JSON lines of synthetic documents."""
    chance = random.Random(1)
    letters = "etaoinshrdlucmfwygpbvk"
    words = ["".join(chance.choices(letters, k=chance.randint(2, 9))) for _ in range(30_000)]
    weights = list(accumulate(1 / (rank + 10) for rank in range(len(words))))
    lines: list[str] = []
    texts: list[str] = []
    left = megabytes * 1e6
    with path.open("w") as stream:
        while left > 0:
            if texts and chance.random() < 0.02:
                copied = chance.choice(texts).split(" ")
                copied[chance.randrange(len(copied))] = "changed"
                text = " ".join(copied)
            else:
                own = [
                    " ".join(chance.choices(words, cum_weights=weights, k=25)) for _ in range(20)
                ]
                again = [
                    chance.choice(lines) if chance.random() < 0.01 and lines else line
                    for line in own
                ]
                text = "\n".join(again)
                texts.append(text)
                lines += own[:1]
            left -= stream.write(json.dumps({"text": text}) + "\n")


def measure(file: Path, **more: Any) -> tuple[float, CorpusManifest]:
    """Return the CPU seconds of an ingest, and its manifest."""
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        inbox = store.sub("inbox")
        land(inbox, "en", [file])
        train_tokenizer(store, inbox, "en", VOCABULARY, SETTINGS)
        began = time.process_time()
        manifest = ingest_plainly(store, inbox, "en", SETTINGS.model_copy(update=more))
        return time.process_time() - began, manifest


def main() -> None:
    """Print the table."""
    megabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 50
    arms: dict[str, dict[str, Any]] = {
        "neither": {},
        "`fuzzy_duplicates: 0.8`": {"fuzzy_duplicates": 0.8},
        "`repeated_lines: 100`": {"repeated_lines": 100},
        "both": {"fuzzy_duplicates": 0.8, "repeated_lines": 100},
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "a.jsonl")
        write_text(file, 1)
        measure(file, **arms["both"])  # imports, and the tables of `comparing`
        write_text(file, megabytes)
        size = file.stat().st_size / 1e6
        libraries = ("tokenizers", "numpy", "pyarrow")
        versions = ", ".join(f"{name} {version(name)}" for name in libraries)
        print(f"`{' '.join(['python', *sys.argv])}`  ")
        print(f"{os.cpu_count()} cores; load {os.getloadavg()[0]:.1f} at the start; {versions}  ")
        print(f"{size:.0f} MB of synthetic text, one process\n")
        print("| corpora | CPU, s | ms per MB | ratio | documents dropped | documents cut |")
        print("| --- | --- | --- | --- | --- | --- |")
        without = 0.0
        for name, more in arms.items():
            seconds, manifest = measure(file, **more)
            without = without or seconds
            counts = manifest.counts
            dropped = sum(counts.quarantined.values())
            cells = (name, f"{seconds:.1f}", f"{seconds / size * 1000:.0f}")
            cells += (
                f"{seconds / without:.2f}",
                f"{dropped:,}",
                f"{counts.repeated_line_documents:,}",
            )
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
