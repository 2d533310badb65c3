"""Where an ingest's CPU goes: its passes in one process without Ray, by function.

The text and the tokenizer are those of `data_ingest.py`. Each line is one ingest of 64 MB; the
functions are of a second one, which a profiler slows a little.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import os
import pstats
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT), str(ROOT / "benchmarks")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--functions", type=int, default=12)
    asked = parser.parse_args()
    print(f"`{' '.join(['python', *sys.argv])}`  ")
    with tempfile.TemporaryDirectory() as scratch:
        _measure(Path(scratch), asked.megabytes << 20, asked.functions)
    print(f"{os.cpu_count()} cores; load {os.getloadavg()[0]:.1f} at the end")


def _measure(folder: Path, size_bytes: int, functions: int) -> None:
    from data_ingest import _write_text, _write_tokenizer

    from perennial.corpora import IngestSettings, land
    from perennial.store import open_store
    from tests.support.plain_ingest import ingest_plainly

    _write_text(folder / "text.jsonl", None, size_bytes)
    _write_tokenizer(folder, 8192, "plain")
    store = open_store(folder / "store")
    inbox = store.sub("inbox")
    land(inbox, "text", [folder / "text.jsonl"])
    for near in (None, 0.8):
        settings = IngestSettings(sequence_length=1024, seed=1, near_duplicates=near)
        for profiled in (False, True):
            store.remove("corpora/text")
            profile, began = cProfile.Profile(), time.process_time()
            if profiled:
                profile.enable()
            tokens = ingest_plainly(store, inbox, "text", settings).counts.tokens
            profile.disable()
            if not profiled:
                seconds = time.process_time() - began
                print(f"\nnear_duplicates {near}: {seconds:.2f} s of CPU, {tokens:,} tokens\n")
        text = io.StringIO()
        pstats.Stats(profile, stream=text).strip_dirs().sort_stats("tottime").print_stats(functions)
        print("```\n" + text.getvalue()[text.getvalue().index("   ncalls") :].strip() + "\n```\n")


if __name__ == "__main__":
    main()
