"""What stops a job for good: a planted batch that makes the loss leap, a setting that cannot be."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from perennial.audit.verify import verify
from perennial.config import RunSpec
from perennial.corpora.packing import RowFile
from perennial.errors import TrainingFailed, TrainingStopped
from perennial.mixture.provenance import Origin, trace_origins
from perennial.runs.events import Opened, TookOver, Trained
from perennial.runs.job_factory import stage_job
from perennial.runs.ledger import Ledger, now
from perennial.runs.stage_planner import decide_stage
from perennial.store import Store, open_store
from perennial.training.checkpoint import manifest as checkpoint
from perennial.training.job import Job
from perennial.training.launcher import run_job
from perennial.training.ray.progress_actor import Progress
from perennial.training.spikes.skips import read_skips
from tests.support.synthetic_run import ingest_text
from tests.support.tiny_run import tiny_run, write_texts

POISONED = 27
"""trunk step that the planted batch leads to"""

UNSEEN = 200
"""token of a byte that no text has"""


def _spec(folder: Path, policy: str) -> RunSpec:
    document = tiny_run(folder)
    document["training"] |= {
        "workers": 2,
        "spikes": {"policy": policy, "window": 8, "threshold": 4},
    }
    document["stages"]["budget"] = "32 steps"
    document["training"]["checkpoint_every"] = "16 steps"
    return RunSpec.model_validate(document)


def _started(folder: Path) -> tuple[Store, Ledger, Job]:
    """A run whose first stage is decided but not trained."""
    spec = _spec(folder, "stop")
    store = open_store(spec.store)
    ledger = Ledger(store)
    ledger.append(Opened(at=now(), spec=spec.model_dump(mode="json")))
    ledger.append(TookOver(at=now(), epoch=1, controller="test:1"))
    manifest = ingest_text(spec, store, ledger, "help", write_texts(folder)["help"])
    ledger.append(decide_stage(spec, ledger.state, "help", now(), "", reschedule=False))
    return store, ledger, stage_job(spec, ledger.state, ledger.state.stages[0], {"help": manifest})


def _plant(store: Store, job: Job) -> tuple[list[Origin], dict[str, bytes]]:
    """Replace the step's rows by one token over and over; where, and the shards as they were."""
    places = trace_origins(job.mix, job.layouts, POISONED - 1)
    before = {place.shard: store.read(place.shard) for place in places}
    for place in places:
        with store.open(place.shard) as stream:
            file = pq.ParquetFile(stream)
            groups = [file.read_row_group(g)["tokens"] for g in range(file.num_row_groups)]
        rows = [np.frombuffer(b"".join(g.to_pylist()), "<u2").copy() for g in groups]
        target, first = io.BytesIO(), 0
        written = RowFile(target, job.sequence_length, 2)
        for group in rows:
            tokens = group.reshape(-1, job.sequence_length)
            tokens[max(0, place.shard_first - first) : max(0, place.shard_last + 1 - first)] = (
                UNSEEN
            )
            written.write(tokens)
            first += len(tokens)
        written.close()
        store.write(place.shard, target.getvalue())
    return places, before


@pytest.mark.long
def test_a_spike_stops_the_job_or_is_left_out_for_good(tmp_path: Path, ray_local: None) -> None:
    store, ledger, job = _started(tmp_path)
    places, shards = _plant(store, job)
    # What was planted has no promised digest.
    layouts = {name: replace(layout, digests=()) for name, layout in job.layouts.items()}
    job = replace(job, layouts=layouts)
    last_good = max(step for step in job.checkpoint_steps() if step < POISONED)
    with pytest.raises(TrainingFailed) as failed:
        run_job(job, lambda _: None)
    told = str(failed.value)
    assert f"step {POISONED} (constant): the loss is" in told
    for place in places:
        assert str(place) in told
    assert "with help.jsonl at " in told
    assert f"unharmed at {job.folder}/{last_good:08d}." in told
    assert checkpoint.latest_step(store, job.folder) == last_good

    manifest = checkpoint.read_manifest(store, f"{job.folder}/{last_good:08d}")
    assert manifest.skipped == ()
    spec = _spec(tmp_path, "rollback-and-skip")
    heard: list[Progress] = []
    job = Job.from_dict(job.to_dict() | {"training": spec.training.model_dump(mode="json")})
    end = run_job(job, heard.append)
    (skip,) = read_skips(store, job.folder)
    assert skip.step == POISONED
    assert [Origin(**origin) for origin in skip.origins] == places
    rows = {row for place in places for row in range(place.first, place.last + 1)}
    assert {document["row"] for document in skip.documents} == rows
    assert {document["corpus"] for document in skip.documents} == {"help"}
    assert [text for news in heard for text in news.skipped]
    assert [start for news in heard for start in news.started] == [(last_good, 2)] * 2

    manifest = checkpoint.read_manifest(store, end)
    assert (manifest.skipped, manifest.optimizer_steps) == ((POISONED,), 31)
    assert manifest.tokens_seen == {"help": 31 * job.tokens_per_step}
    for shard, data in shards.items():
        store.write(shard, data)
    ledger.append(Trained(at=now(), corpus="help", checkpoint=end, step=32, skipped=(POISONED,)))
    assert ledger.state.seen(ledger.state.stages[0], 32) == {"help": 31 * job.mix.global_batch}
    assert verify(store).findings == []
    store.remove(f"{job.folder}/skipped-{POISONED:08d}.json")
    assert any("skipped" in finding.problem for finding in verify(store).findings)


@pytest.mark.long
def test_a_setting_that_the_model_cannot_have_stops_the_job_at_once(
    tmp_path: Path, ray_local: None
) -> None:
    _, _, job = _started(tmp_path)
    bloom = {"architecture": "bloom", "config": {"hidden_size": 32, "n_layer": 1, "n_head": 2}}
    training = job.training.model_dump(mode="json") | {"mask": "document"}
    job = Job.from_dict(job.to_dict() | {"training": training, "model": bloom})
    heard: list[Progress] = []
    with pytest.raises(TrainingStopped, match=r"training\.mask: Bloom\w+ knows no positions"):
        run_job(job, heard.append)
    assert [text for news in heard for text in news.stopped]
    assert not [start for news in heard for start in news.started]
