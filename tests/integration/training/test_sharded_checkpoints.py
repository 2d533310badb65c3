"""A model's files in a checkpoint: every rank writes its share, and any group reads them all."""

from __future__ import annotations

import json
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
from perennial.training.model.shards import INDEX, file_names
from tests.support.gloo import run_on
from tests.support.memory_limit import PeakMemory
from tests.support.played_driver import PlayedDriver

FOLDER = "checkpoints/00-text"
STEP = 40
AT = f"{FOLDER}/{STEP:08d}"
WRITTEN: dict[str, dict[str, Any]] = {
    "zero-0": {"zero_stage": 0},
    "zero-1": {"zero_stage": 1},
    "zero-2-bf16": {"zero_stage": 2, "precision": "bf16"},
    "zero-3": {"zero_stage": 3},
    "zero-3-bf16": {"zero_stage": 3, "precision": "bf16"},
}
READ_STAGE = {0: 3, 1: 0, 2: 1, 3: 2}
"""Another stage than the one that wrote, each once."""
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}
LARGE = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 8}


def _job(url: str, size: dict[str, int] = SMALL, **training: Any) -> Job:
    spec = TrainingSpec.model_validate({"global_batch": 6, "micro_batch": 1} | training)
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
        model=ModelSpec(architecture="llama", config=size | heads),
        training=spec,
        sequence_length=8,
        vocabulary=64,
        end_of_document=0,
        dtype="<u2",
        seed=0,
    )


def _files_of_any_size() -> None:
    """Divide small models too, in this process."""
    from perennial.training.model import shards

    shards.SMALLEST_BYTES = 1


def _step(engine: Any, job: Job) -> None:
    import torch.distributed as dist

    from perennial.training.engine.engine import loss_of, set_eta

    set_eta(engine, 1e-2)
    ids = torch.arange(8).reshape(1, 8) + dist.get_rank()
    for _ in range(job.mix.global_batch // dist.get_world_size()):
        engine.backward(loss_of(engine, ids, job.training, 0))
        engine.step()


def _write(folder: Path, cells: dict[str, dict[str, Any]]) -> None:
    """Train two steps in every cell, store a checkpoint, and keep what it must hold."""
    import torch.distributed as dist

    from perennial.training.checkpoint.reader import ResumePoint
    from perennial.training.checkpoint.resume import engine_at
    from perennial.training.checkpoint.writer import Saver
    from perennial.training.engine.deepspeed_internals import release_engine
    from perennial.training.engine.engine import gather_weights

    _files_of_any_size()
    rank = dist.get_rank()
    for cell, training in cells.items():
        store = open_store(folder / cell)
        job = _job(store.url, **training)
        engine = engine_at(job, ResumePoint(0), dist.get_world_size())
        for _ in range(2):
            _step(engine, job)
        saver = Saver(job, store, PlayedDriver(), None)
        saver.save(engine, STEP, [{"step": STEP, "loss": 1.0}])
        saver.finish()
        saver.close()
        weights = gather_weights(engine)
        if rank == 0:
            whole = {name: tensor.clone() for name, tensor in weights.items()}
            save_file(whole, folder / f"{cell}.safetensors")
        release_engine(engine)
        dist.barrier()


def _read(folder: Path, cells: dict[str, dict[str, Any]]) -> None:
    """Begin from every cell's checkpoint, in the stage that wrote it and in another."""
    import torch.distributed as dist

    from perennial.training.checkpoint.reader import ResumePoint, begin_from_latest
    from perennial.training.checkpoint.resume import engine_at, load_state
    from perennial.training.engine.deepspeed_internals import release_engine
    from perennial.training.engine.engine import gather_weights

    rank, world = dist.get_rank(), dist.get_world_size()
    same: dict[str, list[bool]] = {}
    for cell, training in cells.items():
        store = open_store(folder / cell)
        expected = load_file(folder / f"{cell}.safetensors")
        same[cell] = []
        for stage in (training["zero_stage"], READ_STAGE[training["zero_stage"]]):
            job = _job(store.url, **training | {"zero_stage": stage})

            def begin(start: ResumePoint, job: Job = job) -> Any:
                engine = engine_at(job, start, world)
                load_state(engine, job, start)
                return engine

            scratch = folder / f"read-{cell}-{world}-{stage}-{rank}"
            engine = begin_from_latest(job, store, scratch, PlayedDriver(), begin)
            weights = gather_weights(engine)
            same[cell].append(
                set(weights) == set(expected)
                and all(torch.equal(weights[name], expected[name]) for name in expected)
            )
            release_engine(engine)
    (folder / f"same-{world}-{rank}.json").write_text(json.dumps(same))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of every cell's store, written by two ranks."""
    folder = tmp_path_factory.mktemp("cells")
    run_on(2, _write, folder, WRITTEN)
    return folder


@pytest.mark.parametrize("cell", WRITTEN)
def test_i6_both_ranks_write_a_share_and_the_manifest_lists_all(written: Path, cell: str) -> None:
    from transformers import AutoModelForCausalLM

    store = open_store(written / cell)
    manifest = checkpoints.read_manifest(store, AT)
    shards = file_names(2)
    assert {INDEX, "config.json", "metrics.jsonl", *shards} < set(manifest.files)
    for name, entry in manifest.files.items():
        path = Path(store.url) / manifest.key_of(AT, name)
        assert checkpoints.digest(path) == entry.sha256, name
    place = Path(store.url) / checkpoints.place_of(AT, manifest.attempt)
    sizes = [sum(t.nbytes for t in load_file(place / name).values()) for name in shards]
    largest = max(t.nbytes for name in shards for t in load_file(place / name).values())
    assert abs(sizes[0] - sizes[1]) <= largest
    model = AutoModelForCausalLM.from_pretrained(place, local_files_only=True)
    expected = load_file(written / f"{cell}.safetensors")
    for name, tensor in expected.items():
        assert torch.equal(model.state_dict()[name], tensor), name


CONFIG = b'{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"}'


@pytest.mark.parametrize("cell", ["zero-1", "zero-3-bf16"])
def test_i13_they_are_exported_and_evaluated(written: Path, tmp_path: Path, cell: str) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from perennial.evaluation.evaluate import Loading, fetch, load_model
    from perennial.training.model.export import export

    store = open_store(written / cell)
    expected = load_file(written / f"{cell}.safetensors")
    tokenizer = Tokenizer(WordLevel({"<end>": 0}, "<end>")).to_str()
    files = {"tokenizer.json": tokenizer.encode(), "tokenizer_config.json": CONFIG}
    export(store, AT, "releases/first", files, "card")
    folder = Path(store.url, "releases/first")
    released = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert AutoTokenizer.from_pretrained(folder, local_files_only=True).eos_token_id == 0
    for number, key in enumerate((AT, "releases/first")):
        local = tmp_path / str(number)
        local.mkdir()
        fetch(store, key, local)
        evaluated = load_model(local, Loading())
        for name, tensor in expected.items():
            assert torch.equal(evaluated.state_dict()[name], tensor.float()), name
            assert torch.equal(released.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    "world", [1, *(pytest.param(world, marks=pytest.mark.long) for world in (2, 3))]
)
def test_i9_a_group_of_any_size_and_stage_reads_them_bitwise(written: Path, world: int) -> None:
    run_on(world, _read, written, WRITTEN)
    for rank in range(world):
        same = json.loads((written / f"same-{world}-{rank}.json").read_text())
        assert same == {cell: [True, True] for cell in WRITTEN}


def _save_large(folder: Path) -> None:
    import torch.distributed as dist

    from perennial.training.checkpoint.reader import ResumePoint
    from perennial.training.checkpoint.resume import engine_at
    from perennial.training.checkpoint.writer import Saver

    for size in (SMALL, LARGE):  # the first one imports
        store = open_store(folder / str(size["hidden_size"]))
        job = _job(store.url, size, zero_stage=3)
        engine = engine_at(job, ResumePoint(0), dist.get_world_size())
        _step(engine, job)
        saver = Saver(job, store, PlayedDriver(), None)
        with PeakMemory() as peak:
            saver.save(engine, STEP, [])
            saver.finish()
        saver.close()
    whole = sum(each.ds_shape.numel() * 4 for each in engine.module.parameters())
    (folder / str(dist.get_rank())).write_text(json.dumps([peak.grown_bytes, whole]))


@pytest.mark.long
def test_a_rank_holds_its_share_of_a_model_and_a_tensor_while_it_saves(tmp_path: Path) -> None:
    run_on(2, _save_large, tmp_path)
    for rank in range(2):
        peak_bytes, whole_bytes = json.loads((tmp_path / str(rank)).read_text())
        assert whole_bytes > 200 << 20
        assert peak_bytes < whole_bytes / 2 + (48 << 20)
