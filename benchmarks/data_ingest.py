"""Text in to shards out: tokens per CPU-second, beside the bare engine and the peers.

Every arm runs in a process of its own over the same JSONL; CPU is that of its whole process tree
(Ray's daemons and workers included), on one core, because two processes on two threads of a core
both look slower. The bare engine (`tiktoken`: GPT-2's split as tiktoken ships it) has its texts in
memory and throws the ids away. `tiktoken-grouped` is the same with the form of the split that the
ingest gives it, which cuts alike and is faster. Arms are interleaved over `--rounds`; medians.
Text is real: the source and documentation files of this Python and its packages, or the `--text`
files (JSONL). Where they do not suffice, they follow again with their lines in another order.

With `--tokenizer neox` the tokenizer has what GPT-NeoX's has: NFC, and runs of spaces as added
tokens; the bare engines then have the same steps before the split. With `normalised` it has a
normaliser that tiktoken cannot express, and everything runs on `tokenizers`. The peers live in an
environment of their own:

    python -m venv PEERS
    PEERS/bin/pip install datasets==5.2.0 "datatrove==0.10.1" tokenizers==0.23.3 orjson humanize \\
        psutil
    python benchmarks/data_ingest.py --peers PEERS/bin/python
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "platform")]

PEERS = ("datasets", "datatrove")
SUFFIXES = (".py", ".rst", ".md", ".txt", ".pyi")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", help="python of the peers' environment; none are run without")
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--text", type=Path, nargs="*", help="JSONL files with a field text")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--tokenizer", choices=["plain", "neox", "normalised"], default="plain")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arms", nargs="*", help="default: all that there are")
    asked = parser.parse_args()
    normalised = asked.tokenizer == "normalised"
    limits = ["tokenizers"] if normalised else ["tiktoken", "tiktoken-grouped"]
    arms = asked.arms or [*limits, "perennial", "perennial-plain", *(PEERS if asked.peers else ())]
    results: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        documents = _write_text(folder / "text.jsonl", asked.text, asked.megabytes << 20)
        _write_tokenizer(folder, asked.vocabulary, asked.tokenizer)
        for _ in range(asked.rounds):
            for arm in arms:
                python = asked.peers if arm in PEERS else sys.executable
                results[arm].append(_run(python, arm, folder))
    _print(arms, documents, asked, results)


def _write_text(file: Path, given: list[Path] | None, size_bytes: int) -> int:
    """Writes documents until there is enough text; how many there are."""
    documents = written = 0
    seen: set[int] = set()
    with file.open("w") as stream:
        for text in _enough(given):
            if hash(text) not in seen:
                seen.add(hash(text))
                stream.write(json.dumps({"text": text}) + "\n")
                documents, written = documents + 1, written + len(text.encode())
            if written >= size_bytes:
                break
    return documents


def _enough(given: list[Path] | None) -> Iterator[str]:
    """All texts, and then again and again, their lines in another order each time."""
    for turn in itertools.count():
        order = random.Random(turn)
        for text in _given(given) if given else _found():
            lines = text.splitlines(keepends=True)
            if turn:
                order.shuffle(lines)
            yield "".join(lines)


def _given(files: list[Path]) -> Iterator[str]:
    for file in files:
        with file.open() as stream:
            yield from (json.loads(line)["text"] for line in stream)


def _found() -> Iterator[str]:
    """Files of this Python and its packages, in an order that mixes them."""
    folders = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    files = sorted(f for folder in folders for f in folder.rglob("*") if f.suffix in SUFFIXES)
    random.Random(0).shuffle(files)
    for file in files:
        if file.is_file() and 200 < file.stat().st_size < 200_000:
            try:
                yield file.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def _write_tokenizer(folder: Path, vocabulary: int, kind: str) -> None:
    from perennial.corpora import IngestSettings, import_tokenizer, land, train_tokenizer
    from perennial.store import open_store

    trained, store = open_store(folder / "trained"), open_store(folder / "store")
    land(trained.sub("inbox"), "text", [folder / "text.jsonl"])
    settings = IngestSettings(sequence_length=1024, seed=1)
    tokenizer = train_tokenizer(trained, trained.sub("inbox"), "text", vocabulary, settings)
    content = json.loads(tokenizer.json)
    if kind == "normalised":
        content["normalizer"] = {"type": "NFKC"}
    if kind == "neox":
        content["normalizer"] = {"type": "NFC"}
        content["added_tokens"] += [
            {"id": vocabulary + run, "content": " " * run, "special": False, "normalized": True}
            | {"single_word": False, "lstrip": False, "rstrip": False}
            for run in range(2, 25)
        ]
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(content))
    import_tokenizer(store, file)
    trained.remove("inbox")


def _run(python: str, arm: str, folder: Path) -> dict[str, Any]:
    environment = os.environ | {
        "TOKENIZERS_PARALLELISM": "false",
        "RAYON_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if arm not in PEERS:
        environment["PYTHONPATH"] = str(ROOT / "platform")
    done = subprocess.run(
        [python, str(ROOT / "benchmarks" / "data_ingest_arms.py"), arm, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        preexec_fn=lambda: os.sched_setaffinity(0, {max(os.sched_getaffinity(0))}),
    )
    if done.returncode:
        raise SystemExit(f"{arm} failed:\n{done.stderr[-3000:]}")
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def _print(
    arms: list[str],
    documents: int,
    asked: argparse.Namespace,
    results: dict[str, list[dict[str, Any]]],
) -> None:
    libraries = ("tiktoken", "tokenizers", "ray", "pyarrow", "orjson", "numpy")
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    print(f"`{' '.join(['python', *sys.argv])}`  ")
    print(f"{os.cpu_count()} cores; load {os.getloadavg()[0]:.1f} at the end; {versions}  ")
    print(f"{documents:,} documents, {results[arms[0]][0]['tokens']:,} tokens; medians\n")
    limits = [arm for arm in arms if arm.startswith(("tiktoken", "tokenizers"))]
    of = "".join(f" of {limit} |" for limit in limits)
    print(f"| arm | M tokens per CPU-second | lowest-highest |{of} wall seconds |")
    print("| --- | --- | --- |" + " --- |" * (len(limits) + 1))
    speeds = {
        arm: [run["tokens"] / run["cpu_seconds"] / 1e6 for run in results[arm]] for arm in arms
    }
    for arm in arms:
        speed = statistics.median(speeds[arm])
        shares = [speed / statistics.median(speeds[limit]) for limit in limits]
        wall = statistics.median(run["wall_seconds"] for run in results[arm])
        cells = [arm, f"{speed:.2f}", f"{min(speeds[arm]):.2f}-{max(speeds[arm]):.2f}"]
        cells += [*(f"{share:.2f}" for share in shares), f"{wall:.1f}"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
