"""Nodes that begin from one checkpoint: the store is read once, and each node has every file."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from perennial.config.training import ModelSpec, TrainingSpec
from perennial.mixture import ReplayRule, stage_mix
from perennial.schedules import ConstantSchedule
from perennial.store import open_store
from perennial.training.checkpoint import manifest as checkpoints
from perennial.training.job import Job
from tests.support.gloo import run_on
from tests.support.played_driver import PlayedDriver

FOLDER, STEP, NODES = "checkpoints/00-text", 4, 3
AT = checkpoints.folder_of(FOLDER, STEP)
STAGES = (0, 1)
"""of ZeRO: without it, each node needs the whole of the optimizer's state"""


def _job(url: str, stage: int) -> Job:
    config = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return Job(
        store_url=url,
        name="00-text",
        folder=FOLDER,
        mix=stage_mix([], {"text": 6 * STEP}, STEP, 6, ReplayRule(share=0.0)),
        layouts={},
        first_step=0,
        start=None,
        schedule=ConstantSchedule(1e-2, 10),
        model=ModelSpec(architecture="llama", config=config | heads),
        training=TrainingSpec.model_validate(
            {"global_batch": 6, "micro_batch": 1, "zero_stage": stage}
        ),
        sequence_length=8,
        vocabulary=64,
        end_of_document=0,
        dtype="<u2",
        seed=0,
    )


def _be_a_node() -> int:
    """Make this rank the only one of its node, and return it."""
    import torch.distributed as dist

    rank = dist.get_rank()
    os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "NODE_RANK": str(rank)}
    return rank


def _write(folder: Path) -> None:
    """Train a step and store it, at each stage; in several files of a model, as large ones are."""
    import torch.distributed as dist

    from perennial.training.checkpoint.reader import ResumePoint
    from perennial.training.checkpoint.resume import engine_at
    from perennial.training.checkpoint.writer import Saver
    from perennial.training.engine.deepspeed_internals import release_engine
    from perennial.training.engine.engine import gather_weights, loss_of, set_eta
    from perennial.training.model import shards

    rank = _be_a_node()
    shards.SMALLEST_BYTES = 1
    for stage in STAGES:
        job = _job(str(folder / f"zero-{stage}"), stage)
        engine = engine_at(job, ResumePoint(0), NODES)
        generator = torch.Generator().manual_seed(rank)
        for _ in range(2):
            ids = torch.randint(1, 64, (1, 8), generator=generator)
            engine.backward(loss_of(engine, ids, job.training, 0))
            set_eta(engine, 1e-2)
            engine.step()
        saver = Saver(job, open_store(job.store_url), PlayedDriver(), None)
        saver.save(engine, STEP, [{"step": STEP, "loss": 1.0}])
        saver.finish()
        saver.close()
        weights = gather_weights(engine)
        if rank == 0:
            whole = {name: tensor.clone() for name, tensor in weights.items()}
            save_file(whole, folder / f"zero-{stage}.safetensors")
        release_engine(engine)
        dist.barrier()


def _read(folder: Path) -> None:
    """Begin from each checkpoint, and note what this rank reads of the store."""
    from perennial.store.local import LocalStore
    from perennial.training.checkpoint import peer_copy
    from perennial.training.checkpoint.reader import ResumePoint, begin_from_latest
    from perennial.training.checkpoint.resume import engine_at, load_state
    from perennial.training.engine.deepspeed_internals import release_engine
    from perennial.training.engine.engine import gather_weights

    rank = _be_a_node()
    peer_copy._PIECE_BYTES = 1000  # files of several pieces
    read: list[str] = []
    download = LocalStore.download

    def noting(store: LocalStore, key: str, local: Path) -> None:
        read.append(key)
        download(store, key, local)

    LocalStore.download = noting  # type: ignore[method-assign, assignment]
    for stage in STAGES:
        job = _job(str(folder / f"zero-{stage}"), stage)
        read.clear()

        def begin(start: ResumePoint, job: Job = job) -> tuple[Any, int, bool]:
            engine = engine_at(job, start, NODES)
            load_state(engine, job, start)
            return engine, start.step, start.last_rows(1) == [{"step": STEP, "loss": 1.0}]

        scratch = folder / f"scratch-{stage}-{rank}"
        begun = begin_from_latest(job, open_store(job.store_url), scratch, PlayedDriver(), begin)
        engine, step, has_history = begun
        weights = gather_weights(engine)
        expected = load_file(folder / f"zero-{stage}.safetensors")
        same = all(torch.equal(weights[name], expected[name]) for name in expected)
        found = {"read": read, "right": [step == STEP, has_history, same]}
        (folder / f"node-{stage}-{rank}.json").write_text(json.dumps(found))
        release_engine(engine)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nodes")
    run_on(NODES, _write, folder)
    return folder


def test_nodes_read_a_checkpoint_once_together(written: Path) -> None:
    run_on(NODES, _read, written)
    for stage in STAGES:
        told = [
            json.loads((written / f"node-{stage}-{rank}.json").read_text()) for rank in range(NODES)
        ]
        assert [node["right"] for node in told] == [[True, True, True]] * NODES
        read = Counter(key for node in told for key in node["read"])
        manifest = checkpoints.read_manifest(open_store(written / f"zero-{stage}"), AT)
        assert read == {manifest.key_of(AT, name): 1 for name in manifest.files}
        assert all(node["read"] for node in told), "each node reads a part"


def _spoil(folder: Path) -> None:
    """Begin while what rank 1 receives is altered on its way."""
    import torch.distributed as dist

    from perennial.training.checkpoint import peer_copy
    from perennial.training.checkpoint.reader import begin_from_latest

    rank = _be_a_node()

    def spoiling(tensor: torch.Tensor, source: int, group: Any) -> None:
        dist.broadcast(tensor, source, group)
        if rank == 1 != source:
            tensor[0] += 1

    class Spoilt:
        broadcast = staticmethod(spoiling)

        def __getattr__(self, name: str) -> Any:
            return getattr(dist, name)

    vars(peer_copy)["dist"] = Spoilt()
    job = _job(str(folder / "zero-1"), 1)
    with pytest.raises(RuntimeError, match="was altered on its way from the node that read it"):
        begin_from_latest(
            job, open_store(job.store_url), folder / f"spoilt-{rank}", PlayedDriver(), id
        )


def test_what_is_altered_between_nodes_is_no_damage_of_the_store(written: Path) -> None:
    run_on(2, _spoil, written)
    assert checkpoints.latest_step(open_store(written / "zero-1"), FOLDER) == STEP
