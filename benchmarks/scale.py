"""Measure the sizes and rates that docs/explanation/scale.md extrapolates.

Everything is measured on the project's own code, most of it without a cluster: bytes of manifests,
events and snapshots as they are written; ranges that a rank reads of its shards; sections that a
gather task gets from object storage (the tests' S3 server), one at a time and as it asks for them.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

AT = "2026-11-22T00:00:00+00:00"
SEQUENCE = 2048
GLOBAL_BATCH = 1104
WORKERS = 276


def main() -> None:
    print(f"`{' '.join(['python', *sys.argv])}`\n")
    versions = ", ".join(f"{name} {version(name)}" for name in ("pyarrow", "numpy"))
    print(f"{versions}; {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f} at the start.\n")
    print("what | measured\n--- | ---")
    for what, told in (
        *_manifests(),
        *_ledger(),
        *_stages(),
        *_years(),
        *_steps(),
        *_ranges(),
        *_sections(),
    ):
        print(f"{what} | {told}", flush=True)


def _manifests() -> Iterator[tuple[str, str]]:
    """A corpus's manifest, which a controller and every reader load."""
    from perennial.corpora.manifest import CorpusManifest

    for shards in (100, 10_000):
        text = _manifest(shards).model_dump_json(indent=1)
        began = time.perf_counter()
        kept = CorpusManifest.model_validate_json(text)
        seconds, size = time.perf_counter() - began, len(text)
        tracemalloc.start()
        kept = CorpusManifest.model_validate_json(text)
        grown = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(kept.shards) == shards
        yield (
            f"corpus manifest of {shards:,} shards",
            f"{size:,} bytes ({size / shards:.0f} a shard), read in {seconds:.2f} s, "
            f"{grown / 2**20:.0f} MiB of memory",
        )


def _manifest(shards: int) -> Any:
    from perennial.corpora import manifest as corpus
    from perennial.corpora.packing import rows_per_group

    rows, group, sha256 = (32 << 20) // SEQUENCE, rows_per_group(SEQUENCE, 2), "ab" * 32
    groups = (group,) * (rows // group)
    return corpus.CorpusManifest(
        name="pile",
        digest=sha256,
        tokenizer=sha256,
        engine="tiktoken",
        vocabulary=50_277,
        end_of_document=0,
        settings=corpus.IngestSettings(sequence_length=SEQUENCE, seed=1),
        inputs=tuple(
            corpus.InputFile(name=f"part-{n:05d}.jsonl.zst", size_bytes=1 << 30, etag="ab" * 16)
            for n in range(shards // 20)
        ),
        shards=tuple(
            corpus.Shard(
                file=f"shard-{n:05d}.parquet", size_bytes=1 << 26, sha256=sha256, row_groups=groups
            )
            for n in range(shards)
        ),
        holdout=tuple(
            corpus.HoldoutFile(
                file=f"holdout-{n:05d}.parquet", size_bytes=1 << 26, sha256=sha256, documents=40_000
            )
            for n in range(shards // 100)
        ),
        quarantine=tuple(
            corpus.QuarantineFile(
                file=f"quarantine-{n:05d}.jsonl", size_bytes=1 << 16, sha256=sha256, records=400
            )
            for n in range(shards)
        ),
        digests=tuple(
            corpus.DigestFile(
                file=f"digests-{n:05d}.u64", size_bytes=1 << 24, sha256=sha256, digests=1 << 21
            )
            for n in range(shards // 4)
        ),
        counts=corpus.Counts(),
        tokens_per_byte=0.25,
    )


def _ledger() -> Iterator[tuple[str, str]]:
    """A run's ledger after many stages: events, the snapshot, and reading it from nothing."""
    from perennial.runs.event_codec import encode
    from perennial.runs.events import Landed, Refused
    from perennial.runs.ledger import Ledger
    from perennial.store import open_store

    for events in (2_000, 100_000):
        with tempfile.TemporaryDirectory() as scratch:
            store, folder = open_store(scratch), Path(scratch, "ledger")
            folder.mkdir()
            sizes = 0
            for number in range(events - 150):
                corpus = f"corpus-{number // 2}"
                event = Refused(at=AT, corpus=corpus, reason="too small")
                landed = Landed(at=AT, corpus=corpus, size_bytes=1)
                data = encode(event if number % 2 else landed)
                sizes += (folder / f"{number:012d}.json").write_bytes(data)
            ledger = Ledger(store)
            ledger.read()
            for number in range(events - 150, events):
                corpus = f"corpus-{number // 2}"
                event = Refused(at=AT, corpus=corpus, reason="too small")
                landed = Landed(at=AT, corpus=corpus, size_bytes=1)
                ledger.append(event if number % 2 else landed)
            snapshots = sorted((folder / "snapshots").iterdir())
            began = time.perf_counter()
            state = Ledger(store).read()
            seconds = time.perf_counter() - began
            tracemalloc.start()
            state = Ledger(store).read()
            grown = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            assert len(state.corpora) == events // 2
            yield (
                f"ledger of {events:,} events ({events // 2:,} corpora)",
                f"{sizes / (events - 150):.0f} bytes an event; snapshot "
                f"{snapshots[-1].stat().st_size:,} bytes; read in {seconds:.2f} s, "
                f"{grown / 2**20:.0f} MiB of memory",
            )


def _stages() -> Iterator[tuple[str, str]]:
    """A run of as many corpora as stages, all of them measured after each: what a look costs."""
    from perennial.api.status import read_status
    from perennial.controller.context import Workspace
    from tests.support.long_run import LongRun

    for stages in (100, 300, 1_000):
        with tempfile.TemporaryDirectory() as scratch:
            run = LongRun(Path(scratch)).grow(stages)
            snapshot = sorted(Path(run.store.url, "ledger/snapshots").iterdir())[-1]
            work = Workspace(run.spec, "run.yaml")
            with _requests() as asked:
                began = time.perf_counter()
                status = read_status(work, 20)
                seconds = time.perf_counter() - began
            assert len(status.stages) == 20
            yield (
                f"run of {stages:,} stages",
                f"snapshot {snapshot.stat().st_size / 1e6:.2f} MB; `status` in {seconds:.2f} s and "
                f"{asked.total()} requests",
            )


def _years() -> Iterator[tuple[str, str]]:
    """A run of as many corpora as stages, within a budget and in groups; inbox and ends are there.

    The ledger is whole in the folder, so that its listing costs what it would.
    """
    from tests.support.long_run import lay_around, lay_down

    groups = [f"corpus-{thousand:02d}" for thousand in range(10)]
    settings = {"evaluation": {"corpora": 20}, "replay": {"share": 0.05, "groups": groups}}
    for stages in (1_000, 10_000):
        with tempfile.TemporaryDirectory() as scratch:
            spec = lay_down(Path(scratch), stages, entries=8 * stages + 2, **settings)
            lay_around(Path(spec.store), stages)
            for what, told in _looks(spec):
                yield f"run of {stages:,} stages of {stages:,} corpora: {what}", told


def _looks(spec: Any) -> Iterator[tuple[str, str]]:
    from perennial.api.status import read_status
    from perennial.controller.context import Workspace
    from perennial.controller.loop import _Controller
    from tests.support.long_run import draw_within, stage_events

    def take_charge() -> None:
        taken = Workspace(spec, "run.yaml")
        taken.take_charge()
        assert _Controller(taken, reschedule=False).next() is None
        taken.close()

    def book() -> None:
        for event in draw_within(spec, work.state, stage_events(spec, work.state)):
            work.ledger.append(event)

    yield "`status`", _cost_of(lambda: read_status(Workspace(spec, "run.yaml"), 20))
    yield "taking charge, and a look", _cost_of(take_charge)
    work = Workspace(spec, "run.yaml")
    work.ledger.read()
    yield "another look", _cost_of(_Controller(work, reschedule=False).next)
    yield "decisions and entries of a stage", _cost_of(book)
    work.close()


def _cost_of(work: Callable[[], object]) -> str:
    """Return what a call costs; its memory is measured in a second one, which is slower."""
    with _requests() as asked:
        began, used = time.perf_counter(), time.process_time()
        work()
        seconds, cpu = time.perf_counter() - began, time.process_time() - used
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return (
        f"{seconds:.2f} s, {cpu:.2f} s of it CPU; {asked.total()} requests; at most "
        f"{peak / 2**20:.0f} MiB more memory"
    )


@contextmanager
def _requests() -> Iterator[Counter[str]]:
    """Count the requests to local stores, a listing as the pages that S3 would give."""
    from perennial.store.local import LocalStore
    from tests.support.long_run import REQUESTS, counting

    asked: Counter[str] = Counter()
    with ExitStack() as patches:
        for name in REQUESTS:
            counted = counting(getattr(LocalStore, name), asked)
            patches.enter_context(patch.object(LocalStore, name, counted))
        yield asked


def _steps() -> Iterator[tuple[str, str]]:
    """A line of metrics a step, all of which the last checkpoint of a stage carries."""
    row = {
        "step": 123_456,
        "loss": 2.1234567890123,
        "eta": 0.000123456789,
        "phase": "constant",
        "batch_tokens": GLOBAL_BATCH * SEQUENCE,
        "tokens_per_second": 569063.123,
        "gradient_norm": 0.412345678901,
        "seconds": dict.fromkeys(
            ("data", "forward", "backward", "communication", "optimizer", "checkpoint"), 0.1234567
        ),
    }
    size = len(json.dumps(row)) + 1
    stage = size * 132_366 / 1e6
    yield "metrics of a step, in a checkpoint", f"{size} bytes ({stage:.0f} MB in 132,366 steps)"


def _ranges() -> Iterator[tuple[str, str]]:
    """Ranges of shards that all ranks together read for their rows, alone and with replay."""
    from perennial.mixture.batches import Batches, slice_rank_rows
    from perennial.mixture.plan import Source, StageMix
    from perennial.mixture.row_reader import CorpusLayout, RowReader
    from perennial.store import open_store

    steps, shards = 256, 8192
    shard_rows = (32 << 20) // SEQUENCE
    layout = CorpusLayout(("shard",) * shards, (shard_rows,) * shards)
    for replayed in (0, 55):
        counts = {"new": GLOBAL_BATCH - replayed} | ({"old": replayed} if replayed else {})
        sources = tuple(
            Source(name, count * steps, 0, layout.rows) for name, count in counts.items()
        )
        mix = StageMix("new", steps, GLOBAL_BATCH, sources)
        layouts = dict.fromkeys(counts, layout)
        named, rows = Batches(mix, 0).take(steps)
        ranges = 0
        with tempfile.TemporaryDirectory() as scratch:
            reader = RowReader(open_store(scratch), layouts, 2 * SEQUENCE)
            for rank in range(WORKERS):
                mine = slice_rank_rows(GLOBAL_BATCH, rank, WORKERS)
                for index, name in enumerate(counts):
                    wanted = rows[:, mine][named[:, mine] == index]
                    if len(wanted):
                        out = np.empty((len(wanted), 2 * SEQUENCE), dtype=np.uint8)
                        ranges += sum(1 for _ in reader._pieces([(name, wanted)], out))
        yield (
            f"ranges that {WORKERS} workers read for a step of {GLOBAL_BATCH:,} sequences, "
            f"{replayed} of them replayed",
            f"{ranges / steps:.0f}",
        )


def _sections() -> Iterator[tuple[str, str]]:
    """Sections of staged files from S3, as a gather task asks for them."""
    from perennial.corpora.ingest import spill as staging
    from perennial.corpora.ingest.spill import SectionFile, read_sections
    from perennial.store import open_store
    from tests.support.s3_server import CephServer, MotoServer, _has_ceph

    runs = 400
    with tempfile.TemporaryDirectory(prefix="s3-") as scratch:
        server = CephServer(Path(scratch)) if _has_ceph() else MotoServer(Path(scratch))
        try:
            os.environ.update(server.environment())
            os.environ["AWS_REQUEST_CHECKSUM_CALCULATION"] = "when_required"
            store = open_store(f"s3://{server.new_bucket()}/staging")
            for run in range(runs):
                with store.open(f"pieces/{run:06d}.run", "wb") as stream:
                    file = SectionFile(stream, 16)
                    for _ in range(16):
                        file.add(os.urandom(8192))
                    file.close()
            places = [(f"pieces/{run:06d}.run", 5) for run in range(runs)]
            told = []
            for at_once in (1, 32):
                staging._REQUESTS_AT_ONCE = at_once
                began = time.perf_counter()
                assert sum(1 for _ in read_sections(store, places)) == runs
                told.append(runs / (time.perf_counter() - began))
            yield (
                "sections of 8 KiB from S3 (three requests each)",
                f"{told[0]:.0f} a second one after the other, {told[1]:.0f} with 32 at once",
            )
        finally:
            server.stop()


if __name__ == "__main__":
    main()
