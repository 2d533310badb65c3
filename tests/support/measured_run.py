"""A run of any number of stages whose losses are made up: for pages, and not for checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from perennial.cli.console import ProgressScreen
from perennial.config import RunSpec
from perennial.controller.context import Workspace
from perennial.corpora.manifest import manifest_key
from perennial.corpora.tokenizer import import_tokenizer
from perennial.evaluation import HeldoutLoss
from perennial.evaluation.samples import Sample
from perennial.runs import events
from perennial.runs.ledger import Ledger
from perennial.store import open_store
from tests.support.committed import commit_folder
from tests.support.event_factory import AT, STEPS, event_of, releasing
from tests.support.small_manifest import small_manifest
from tests.support.small_tokenizers import byte_level_json
from tests.support.tiny_run import tiny_run

_MEASURED = 8
"""Corpora on which each stage is measured, the next one's among them, at most."""
RELEASE = "the-release"


def measured_run(folder: Path, corpora: Sequence[str], baseline: str | None = None) -> Workspace:
    """Write a run with one stage for each corpus and a release off the last, and open it."""
    document = tiny_run(folder)
    document["evaluation"]["baseline"] = baseline
    spec = RunSpec.model_validate(document)
    store = open_store(spec.store)
    ledger = Ledger(store)
    ledger.append(events.Opened(at=AT, spec=spec.model_dump(mode="json")))
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(json.dumps(byte_level_json()))
    import_tokenizer(store, tokenizer, "<|endoftext|>")
    for number, corpus in enumerate(corpora):
        for kind in ("landed", "ingesting", "ready", "started"):
            ledger.append(event_of(kind, ledger.state, corpus))
        manifest = small_manifest(corpus).sealed()
        store.write(manifest_key(corpus), manifest.model_dump_json().encode())
        stage = ledger.state.stages[-1]
        _commit_steps(folder / f"steps-{number}", stage.folder, stage.first_step, store.url)
        ledger.append(event_of("trained", ledger.state, corpus))
        ledger.append(event_of("evaluating", ledger.state, corpus))
        losses = _losses(corpora, number)
        sample = Sample(corpus, "Once upon", f" a time {number}")
        ledger.append(events.Evaluated(at=AT, corpus=corpus, losses=losses, samples=[sample]))
        ledger.append(event_of("passed", ledger.state, corpus))
    ledger.append(releasing(ledger.state, RELEASE))
    ledger.append(
        events.Released(
            at=AT, name=RELEASE, source="c", folder=f"releases/{RELEASE}", steps=0, schedule={},
            losses=_losses(corpora, len(corpora) - 1, annealed=0.1), samples=[],
        )
    )  # fmt: skip
    work = Workspace(spec, "run.yaml", [ProgressScreen()])
    work.ledger.read()
    return work


def _losses(corpora: Sequence[str], stage: int, annealed: float = 0.0) -> dict[str, HeldoutLoss]:
    """Return losses that fall by 2.7 nats in a corpus's stage and then slowly rise again."""
    losses = {}
    for j in range(max(0, stage + 2 - _MEASURED), min(len(corpora), stage + 2)):
        nats = 7.1 - 0.1 * stage / len(corpora) - 2.7 * (stage >= j)
        nats += 0.12 * math.sqrt(max(0, stage - j)) - annealed
        error = 0.02 if stage > j else None
        losses[corpora[j]] = HeldoutLoss(
            corpora[j], nats, nats / 3, 100, 9000, 30_000, 0.05, stderr_of_change=error
        )
    return losses


def _commit_steps(scratch: Path, folder: str, first_step: int, url: str) -> None:
    scratch.mkdir()
    rows = [
        {
            "step": step,
            "loss": 4.0 + 3.0 / (1 + step - first_step),
            "batch_tokens": 1024,
            "tokens_per_second": 500.0,
            "seconds": {"forward": 0.5, "backward": 1.0, "optimizer": 0.1, "data": 0.05},
        }
        for step in range(first_step + 1, first_step + STEPS + 1)
    ]
    (scratch / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    last = first_step + STEPS
    commit_folder(open_store(url), scratch, last, f"{folder}/{last:08d}")
