"""A run of many stages that nobody trained: the ledger that the real decisions write."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from perennial.config import RunSpec
from perennial.corpora.manifest import manifest_key
from perennial.corpora.tokenizer import import_tokenizer
from perennial.evaluation import HeldoutLoss
from perennial.runs import snapshots
from perennial.runs.event_codec import encode
from perennial.runs.events import (
    Evaluated,
    Evaluating,
    Event,
    Ingesting,
    Landed,
    Opened,
    Passed,
    Ready,
    TookOver,
    Trained,
)
from perennial.runs.ledger import HEAD, Ledger, digest_of
from perennial.runs.stage_planner import decide_stage
from perennial.runs.state import RunState
from perennial.runs.trunk.stage_archive import StageIndex
from perennial.runs.unattended.evaluation_draw import decide_draw, measured_corpora
from perennial.store import Store, open_store
from perennial.training.checkpoint.manifest import (
    MANIFEST,
    METRICS,
    CheckpointManifest,
    FileEntry,
    folder_of,
)
from tests.support.event_factory import AT
from tests.support.small_manifest import small_manifest
from tests.support.small_tokenizers import byte_level_json
from tests.support.tiny_run import tiny_run

ROWS = 800
_NEWEST = 40


def long_spec(folder: Path, changes: dict[str, Any] | None = None) -> RunSpec:
    """The run file of `tiny_run`, with sections of `changes` in place of its own."""
    return RunSpec.model_validate(tiny_run(folder) | (changes or {}))


def stage_events(
    spec: RunSpec, state: RunState, cells: int | None = None, skipped: tuple[int, ...] = ()
) -> Iterator[Event]:
    """The next corpus, led to the end of its stage; each event is to be applied before the next.

    Args:
        spec: the run file.
        state: the run.
        cells: number of earlier corpora that the evaluation measures; None for all of them.
        skipped: trunk steps whose batch the stage skips.
    """
    name = f"corpus-{len(state.corpora):05d}"
    yield Landed(at=AT, corpus=name, size_bytes=1)
    yield Ingesting(at=AT, corpus=name)
    yield Ready(at=AT, corpus=name, sequences=ROWS, tokens=ROWS * 128, digest="ab" * 32)
    yield decide_stage(spec, state, name, AT, "r", reschedule=False)
    stage = state.stages[-1]
    end = folder_of(stage.folder, stage.last_step)
    yield Trained(at=AT, corpus=name, checkpoint=end, step=stage.last_step, skipped=skipped)
    yield Evaluating(at=AT, corpus=name)
    earlier = list(state.corpora)[:-1]
    measured = [*earlier[:cells], name]
    losses = {each: loss_on(each, 3.0 + len(measured) / 100) for each in measured}
    yield Evaluated(at=AT, corpus=name, losses=losses)
    yield Passed(at=AT, corpus=name, verdicts=[])


def draw_within(spec: RunSpec, state: RunState, events: Iterator[Event]) -> Iterator[Event]:
    """The events of a stage, measured on what the run file's budget draws.

    Args:
        spec: the run file.
        state: the run, to which each event is applied before the next.
        events: as `stage_events` yields them.
    """
    for event in events:
        stage, ready = state.stages[-1:], list(state.corpora)
        if isinstance(event, Evaluating):
            yield event.model_copy(update={"draw": decide_draw(spec, state, stage[0], ready)})
        elif isinstance(event, Evaluated):
            chosen = measured_corpora(state.drawing, stage[0], ready)
            losses = {name: loss_on(name, 3 + len(state.stages) / 1000) for name in chosen}
            yield event.model_copy(update={"losses": losses, "draw": state.drawing})
        else:
            yield event


def lay_down(
    folder: Path, stages: int, *, drawn: int = 100, entries: int = 1_000, **changes: Any
) -> RunSpec:
    """Write a run of many stages into `folder`/store, in less time than its ledger takes to write.

    All stages but the last `drawn` replay nothing and measure their own corpus alone.

    Args:
        folder: for the store.
        stages: number of stages, and of corpora.
        drawn: last stages that replay and are measured as the run file says.
        entries: last entries of the ledger that are written, besides those of the first stage.
        changes: sections of the run file.

    Returns:
        The run file.
    """
    spec, bare = long_spec(folder, changes), long_spec(folder, {"replay": {"share": 0.0}})
    store, state, index = open_store(spec.store), RunState(), StageIndex()
    ledger, number, before = Path(store.url, "ledger"), 0, ""
    ledger.mkdir(parents=True)

    def happenings() -> Iterator[Event]:
        yield Opened(at=AT, spec=spec.model_dump(mode="json") | {"store": "."}, id="ab" * 16)
        yield TookOver(at=AT, epoch=1, controller="test:1")
        for done in range(stages):
            if done < stages - drawn:
                yield from stage_events(bare, state, 0)
            else:
                yield from draw_within(spec, state, stage_events(spec, state))

    first, data = 2 + 8 * stages - entries, b""
    for number, event in enumerate(happenings()):
        state.apply(event)
        index.note(number, event, state)
        if number < 10 or number >= first:  # the first stage's plan is asked for by later ones
            data = encode(event, before)
            before = digest_of(data)
            (ledger / f"{number:012d}.json").write_bytes(data)
    snapshots.write(store, state, index, number + 1, data)
    store.write(HEAD, json.dumps({"events": number + 1, "sha256": before}).encode())
    return spec


def lay_around(store: Path, stages: int) -> None:
    """Write what is beside the ledger of `lay_down`: landed corpora, and an end of each stage.

    An end has a manifest and the metrics of its steps; its other files are empty. There is a
    tokenizer, and the newest corpora have a manifest.
    """
    tokenizer = store.parent / "tokenizer.json"
    tokenizer.write_text(json.dumps(byte_level_json()))
    import_tokenizer(open_store(store), tokenizer, "<|endoftext|>")
    for number in range(stages):
        corpus, first = f"corpus-{number:05d}", number * 12
        end = f"checkpoints/{number:02d}-{corpus}/{first + 12:08d}"
        rows = [
            {"step": first + n, "loss": 3 + 1 / (first + n), "eta": 1e-3, "seconds": {"forward": 1}}
            for n in range(1, 13)
        ]
        metrics = "".join(json.dumps(row) + "\n" for row in rows).encode()
        written = {
            f"inbox/{corpus}/text.jsonl": b"",
            f"inbox/{corpus}/_SUCCESS": b"",
            **{f"{end}/part-{part}": b"" for part in range(3)},
            f"{end}/{METRICS}": metrics,
            f"{end}/{MANIFEST}": _manifest(first + 12, metrics),
        }
        if number >= stages - _NEWEST:
            manifest = small_manifest(corpus).sealed()
            written[manifest_key(corpus)] = manifest.model_dump_json().encode()
        for name, data in written.items():
            (store / name).parent.mkdir(parents=True, exist_ok=True)
            (store / name).write_bytes(data)


def _manifest(step: int, metrics: bytes) -> bytes:
    """The manifest of a checkpoint that has nothing but metrics."""
    described = CheckpointManifest(
        name="",
        step=step,
        phase="constant",
        eta=1e-3,
        schedule={},
        mix={},
        mix_step=12,
        tokens_seen={},
        optimizer_steps=step,
        world_size=1,
        code_version="",
        tracking_run="",
        files={METRICS: FileEntry(size_bytes=len(metrics), sha256=digest_of(metrics))},
    )
    return described.model_dump_json().encode()


def loss_on(corpus: str, nats: float) -> HeldoutLoss:
    """A held-out loss, with as many digits as a real one."""
    return HeldoutLoss(corpus, nats / 3 * 3, nats / 7, 5, 1234, 5678, nats / 97, nats / 991)


class LongRun:
    """A run that grows stage by stage in `folder`/store.

    Args:
        folder: for the store.
        cells: as for `stage_events`.
        changes: as for `long_spec`.
    """

    def __init__(
        self, folder: Path, cells: int | None = None, changes: dict[str, Any] | None = None
    ) -> None:
        self.spec = long_spec(folder, changes)
        self.store: Store = open_store(self.spec.store)
        self.ledger = Ledger(self.store)
        self._cells = cells
        self.ledger.append(Opened(at=AT, spec=self.spec.model_dump(mode="json")))
        self.ledger.append(TookOver(at=AT, epoch=1, controller="test:1"))

    def grow(self, stages: int) -> LongRun:
        """Land and train corpora until the trunk has so many stages."""
        while len(self.ledger.state.stages) < stages:
            for event in stage_events(self.spec, self.ledger.state, self._cells):
                self.ledger.append(event)
        return self


REQUESTS = ("read", "list", "info", "exists", "write", "create")
"""methods of a store that ask it something"""
_PAGE = 1_000
"""objects that S3 lists at once"""


def counting(real: Callable[..., Any], asked: Counter[str]) -> Callable[..., Any]:
    """A method of a store that counts its requests, a listing as the pages that S3 would give."""

    def call(*args: Any, **options: Any) -> Any:
        answer = real(*args, **options)
        asked[real.__name__] += 1 + (len(answer) // _PAGE if isinstance(answer, list) else 0)
        return answer

    return call


def count_calls(work: Callable[[], object]) -> int:
    """The number of functions that `work` calls, those of the interpreter and of C included."""
    calls = 0

    def count(_frame: FrameType, happening: str, _what: object) -> None:
        nonlocal calls
        calls += happening in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return calls
