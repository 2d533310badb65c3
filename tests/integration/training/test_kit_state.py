"""A run that starts from a trunk kit steps as the trunk itself does, bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perennial.config.run import OptimizerAtJoin
from perennial.config.training import ModelSpec, TrainingSpec
from perennial.mixture import ReplayRule, stage_mix
from perennial.schedules import ConstantSchedule
from perennial.store import open_store
from perennial.training.checkpoint import manifest as checkpoints
from perennial.training.job import Job
from tests.support.gloo import run_on
from tests.support.played_driver import PlayedDriver
from tests.support.small_tokenizers import byte_level_json

STEP, VOCABULARY = 40, 300
AT = f"checkpoints/00-text/{STEP:08d}"
CELLS: dict[str, tuple[OptimizerAtJoin, dict[str, Any]]] = {
    "zero-1, kept": ("keep", {"zero_stage": 1}),
    "zero-1, second moment": ("keep-second-moment", {"zero_stage": 1}),
    "zero-1, reset": ("reset", {"zero_stage": 1}),
    "zero-2 in bf16, kept": ("keep", {"zero_stage": 2, "precision": "bf16"}),
    "zero-2 in bf16, reset": ("reset", {"zero_stage": 2, "precision": "bf16"}),
    "zero-3, kept": ("keep", {"zero_stage": 3}),
    "muon, kept": ("keep", {"zero_stage": 0, "optimizer": {"kind": "muon"}}),
}


def _job(url: str, **training: Any) -> Job:
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return Job(
        store_url=url,
        name="00-text",
        folder="checkpoints/00-text",
        mix=stage_mix([], {"text": 2 * STEP}, STEP, 2, ReplayRule(share=0.0)),
        layouts={},
        first_step=0,
        start=None,
        schedule=ConstantSchedule(1e-2),
        model=ModelSpec(architecture="llama", config=size | heads),
        training=TrainingSpec.model_validate({"global_batch": 2, "micro_batch": 1} | training),
        sequence_length=8,
        vocabulary=VOCABULARY,
        end_of_document=0,
        dtype="<u2",
        seed=0,
    )


def _steps(engine: Any, job: Job, first: int) -> list[float]:
    """Take three steps; return this rank's losses."""
    import torch
    import torch.distributed as dist

    from perennial.training.engine.engine import loss_of, set_eta

    losses = []
    for step in range(first, first + 3):
        set_eta(engine, 1e-2)
        noise = torch.Generator().manual_seed(100 * step + dist.get_rank())
        ids = torch.randint(1, VOCABULARY, (1, 8), generator=noise)
        loss = loss_of(engine, ids, job.training, 0)
        engine.backward(loss)
        engine.step()
        losses.append(float(loss))
    return losses


def _begin(job: Job, scratch: Path) -> tuple[list[float], Any]:
    """Begin a job, and take three steps of it; return losses and the fp32 weights after them."""
    import torch.distributed as dist

    from perennial.training.checkpoint.reader import ResumePoint, begin_from_latest
    from perennial.training.checkpoint.resume import engine_at, load_state
    from perennial.training.engine.deepspeed_internals import release_engine
    from tests.support.engines import stepped_weights

    def begin(start: ResumePoint) -> Any:
        engine = engine_at(job, start, dist.get_world_size())
        load_state(engine, job, start)
        return engine

    engine = begin_from_latest(job, open_store(job.store_url), scratch, PlayedDriver(), begin)
    losses = _steps(engine, job, STEP)
    weights = stepped_weights(engine).clone()
    release_engine(engine)
    return losses, weights


def _make_kit(url: str, scratch: Path, kit: Path) -> None:
    from perennial.training.kit.build import build_kit, seal_kit
    from perennial.training.kit.manifest import KitManifest

    for folder in (scratch, kit):
        folder.mkdir(parents=True)
    files = {
        "tokenizer.json": json.dumps(byte_level_json(VOCABULARY)).encode(),
        "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast"}',
    }
    state = build_kit(open_store(url), AT, files, scratch, kit)
    manifest = KitManifest(
        run="text",
        source=f"00-text@{STEP}",
        checkpoint="0" * 64,
        step=STEP,
        phase="constant",
        eta=1e-2,
        schedule={},
        sequence_length=8,
        global_batch=2,
        optimizer=state,
        tokenizer="t",
        corpora={},
        stages=(),
        code_version="0",
        files={},
    )
    seal_kit(kit, manifest)


def _compare(folder: Path) -> None:
    """Continue a checkpoint, and a kit of it in a store of its own, in every cell."""
    import torch
    import torch.distributed as dist

    from perennial.training.checkpoint.reader import ResumePoint
    from perennial.training.checkpoint.resume import engine_at
    from perennial.training.checkpoint.writer import Saver
    from perennial.training.engine.deepspeed_internals import release_engine
    from perennial.training.model.initial import import_model, import_state

    rank, world = dist.get_rank(), dist.get_world_size()
    same: dict[str, list[bool]] = {}
    for cell, (join, training) in CELLS.items():
        own = folder / cell
        job = _job(str(own / "store"), **training)
        engine = engine_at(job, ResumePoint(0), world)
        _steps(engine, job, 0)
        saver = Saver(job, open_store(job.store_url), PlayedDriver(), None)
        saver.save(engine, STEP, [{"step": STEP, "loss": 1.0}])
        saver.finish()
        saver.close()
        release_engine(engine)
        later = replace(
            job, name="01", folder="checkpoints/01", first_step=STEP, start=AT, optimizer=join
        )
        trunk = _begin(later, own / f"trunk-{rank}")
        theirs = open_store(own / "theirs")
        if rank == 0:
            _make_kit(job.store_url, own / "scratch", own / "kit")
            path = str(own / "kit")
            import_model(theirs, ModelSpec(path=path), VOCABULARY, 0, 8)
            if join != "reset" or "precision" in training:
                import_state(theirs, path)
        dist.barrier()
        model = ModelSpec(path=str(own / "kit"))
        first = replace(job, store_url=theirs.url, model=model, optimizer=join)
        taken = _begin(first, own / f"taken-{rank}")
        same[cell] = [trunk[0] == taken[0], torch.equal(trunk[1], taken[1])]
    (folder / f"same-{rank}.json").write_text(json.dumps(same))


@pytest.mark.long
def test_a_run_from_a_kit_steps_as_its_trunk_does(tmp_path: Path) -> None:
    run_on(2, _compare, tmp_path)
    for rank in range(2):
        same = json.loads((tmp_path / f"same-{rank}.json").read_text())
        assert same == {cell: [True, True] for cell in CELLS}
    manifest = checkpoints.read_manifest(open_store(tmp_path / "zero-1, kept" / "store"), AT)
    assert manifest.optimizer_steps == 3
