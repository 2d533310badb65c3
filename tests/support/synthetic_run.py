"""A finished run whose checkpoints were not trained: real corpora, ledger, plan and manifests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from perennial import corpora
from perennial.config import RunSpec
from perennial.corpora.ingest.pipeline import ingest_corpus
from perennial.corpora.release_tokenizer import release_files
from perennial.runs.events import (
    Evaluated,
    Evaluating,
    Ingesting,
    Landed,
    Opened,
    Passed,
    Ready,
    Released,
    TookOver,
    Trained,
)
from perennial.runs.job_factory import release_job, stage_job
from perennial.runs.ledger import Ledger, now
from perennial.runs.stage_planner import decide_release, decide_stage
from perennial.schedules import to_dict
from perennial.store import Store, open_store
from perennial.training.checkpoint import manifest as checkpoint
from perennial.training.job import Job
from perennial.training.model.export import export
from tests.support.tiny_run import tiny_run, write_texts

WORLD = 2
ATTEMPT = "crafted"


Ingest = Callable[[Store, Store, str, corpora.IngestSettings, list[str]], corpora.CorpusManifest]


def _ingest_with_ray(
    store: Store, inbox: Store, name: str, settings: corpora.IngestSettings, earlier: list[str]
) -> corpora.CorpusManifest:
    return ingest_corpus(store, inbox, name, settings, earlier=earlier)


def craft_run(folder: Path, ingest: Ingest = _ingest_with_ray) -> Store:
    """A run of two stages and a release in `folder`/store; its ingests need Ray by default."""
    spec = RunSpec.model_validate(tiny_run(folder))
    store = open_store(spec.store)
    ledger = Ledger(store)
    # As a controller does: where the store is belongs into no store.
    ledger.append(Opened(at=now(), spec=spec.model_dump(mode="json") | {"store": "."}))
    ledger.append(TookOver(at=now(), epoch=1, controller="test:1"))
    manifests = {}
    for name, file in write_texts(folder).items():
        with file.open("a") as sink:
            sink.write("not JSON\n{}\n")
        manifests[name] = ingest_text(spec, store, ledger, name, file, ingest)
        started = decide_stage(spec, ledger.state, name, now(), "", reschedule=False)
        ledger.append(started)
        job = stage_job(spec, ledger.state, ledger.state.stage_of(name), manifests)
        end = save_checkpoints(store, job, folder)
        ledger.append(Trained(at=now(), corpus=name, checkpoint=end, step=job.last_step))
        ledger.append(Evaluating(at=now(), corpus=name))
        ledger.append(Evaluated(at=now(), corpus=name, losses={}))
        ledger.append(Passed(at=now(), corpus=name, verdicts=[]))
    _release(spec, store, ledger, manifests, folder)
    return store


def ingest_text(
    spec: RunSpec,
    store: Store,
    ledger: Ledger,
    name: str,
    file: Path,
    ingest: Ingest = _ingest_with_ray,
) -> corpora.CorpusManifest:
    inbox = store.sub("inbox")
    settings = corpora.IngestSettings(
        sequence_length=spec.corpora.sequence_length,
        seed=spec.seed,
        holdout_share=spec.corpora.holdout,
        max_bad_share=0.1,
        shard_tokens=20_000,
    )
    corpora.land(inbox, name, [file])
    assert spec.tokenizer.vocabulary is not None
    corpora.train_tokenizer(store, inbox, name, spec.tokenizer.vocabulary, settings)
    listing = corpora.record_list(store, inbox, corpora.read_landed(inbox, name))
    size = file.stat().st_size
    ledger.append(Landed(at=now(), corpus=name, size_bytes=size, listing=listing))
    ledger.append(Ingesting(at=now(), corpus=name))
    earlier = [each for stage in ledger.state.stages for each in stage.corpora]
    manifest = ingest(store, inbox, name, settings, earlier)
    ledger.append(
        Ready(
            at=now(),
            corpus=name,
            sequences=manifest.rows,
            tokens=manifest.tokens,
            digest=manifest.digest,
        )
    )
    return manifest


def save_checkpoints(store: Store, job: Job, scratch: Path) -> str:
    """Commit the checkpoints that are due in a job, with its plan's numbers; the last one's key."""
    key = ""
    for step in sorted(job.checkpoint_steps()):
        key = checkpoint.folder_of(job.folder, step)
        folder = scratch / key
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        for name in ("model", *(f"optimizer-{rank:02d}-of-{WORLD:02d}" for rank in range(WORLD))):
            save_file({"w": np.full(64, step, np.float32)}, folder / f"{name}.safetensors")
        rows = [
            {"step": done, "batch_tokens": job.tokens_per_step, "tokens_per_second": 1000.0}
            for done in range(job.first_step + 1, step + 1)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        place = checkpoint.place_of(key, ATTEMPT)
        files = checkpoint.upload(store, place, sorted(folder.iterdir()))
        checkpoint.commit(store, key, _manifest(job, step, files))
    return key


def _manifest(
    job: Job, step: int, files: dict[str, checkpoint.FileEntry]
) -> checkpoint.CheckpointManifest:
    return checkpoint.CheckpointManifest(
        name=job.name,
        step=step,
        phase=job.phase(step - 1),
        eta=job.eta(step - 1),
        schedule=to_dict(job.schedule),
        mix=job.mix.to_dict(),
        mix_step=step - job.first_step,
        tokens_seen=job.tokens_at(step),
        optimizer_steps=step - job.first_step,
        world_size=WORLD,
        code_version="0",
        tracking_run="",
        attempt=ATTEMPT,
        files=files,
    )


def _release(
    spec: RunSpec,
    store: Store,
    ledger: Ledger,
    manifests: dict[str, corpora.CorpusManifest],
    scratch: Path,
) -> None:
    stage = ledger.state.stages[-1]
    decided = decide_release(spec, ledger.state, stage, stage.last_step, None, now())
    ledger.append(decided)
    branch = release_job(spec, ledger.state, decided, manifests, "")
    name = decided.name
    end = save_checkpoints(store, branch, scratch)
    tokenizer = release_files(corpora.load_tokenizer(store))
    export(store, end, f"releases/{name}", tokenizer, "A release.")
    ledger.append(
        Released(
            at=now(),
            name=name,
            source=ledger.state.ends[stage.name],
            folder=f"releases/{name}",
            steps=branch.mix.steps,
            schedule=to_dict(branch.schedule),
            losses={},
            samples=[],
        )
    )
