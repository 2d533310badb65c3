"""Checkpoints of a real engine on two processes: stored behind training, checked on load."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from perennial.config.run import OptimizerAtJoin
from perennial.config.training import ModelSpec, TrainingSpec
from perennial.errors import StartDamaged, StoreFailed
from perennial.mixture import ReplayRule, stage_mix
from perennial.optimizers import AdamWConfig
from perennial.schedules import ConstantSchedule
from perennial.store import Store, open_store
from perennial.training.checkpoint import manifest as checkpoints
from perennial.training.job import Job
from tests.support.gloo import run_on

FOLDER = "checkpoints/00-text"
SAVED = (5, 11, 15, 20, 25)


class Tap:
    """Takes what the workers tell, at once."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.saved_keys: list[str] = []

    @property
    def notice(self) -> Remote:
        return Remote(self.lines.append)

    @property
    def failed_save(self) -> Remote:
        return Remote(lambda _step, line: self.lines.append(line))

    @property
    def saved(self) -> Remote:
        return Remote(self.saved_keys.append)


@dataclasses.dataclass
class Remote:
    """An actor's method as its caller sees it."""

    remote: Callable[..., Any]


CONFIG = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
MODEL = ModelSpec(architecture="gpt_neox", config=CONFIG | {"num_attention_heads": 2})


def _job(url: str, **training: Any) -> Job:
    spec = TrainingSpec.model_validate(
        {"global_batch": 2, "micro_batch": 1, "checkpoint_every": "5 steps"} | training
    )
    return Job(
        store_url=url,
        name="00-text",
        folder=FOLDER,
        mix=stage_mix([], {"text": 100}, 40, 2, ReplayRule(share=0.0)),
        layouts={},
        first_step=0,
        start=None,
        schedule=ConstantSchedule(1e-3, 10),
        model=MODEL,
        training=spec,
        sequence_length=8,
        vocabulary=64,
        end_of_document=0,
        dtype="<u2",
        seed=0,
    )


def _engine() -> Any:
    import torch
    import torch.distributed as dist

    from perennial.training.engine.engine import build_engine, set_eta
    from perennial.training.model.config import model_config, random_model

    training = _job("").training
    engine = build_engine(
        random_model(model_config(MODEL, 64, 0, 8), seed=1), training, 2, dist.get_world_size(), 0
    )
    set_eta(engine, 1e-2)
    ids = torch.arange(8).reshape(1, 8)
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    engine.step()
    return engine


def _flip(store: Store, key: str) -> None:
    data = bytearray(store.read(key))
    data[len(data) // 2] ^= 1
    store.write(key, bytes(data))


def _play(folder: Path) -> None:
    """Every scene on this rank; rank 0 writes down what happened."""
    import torch.distributed as dist

    engine = _engine()
    facts: dict[str, Any] = {}
    for scene in (
        _saving,
        _going_on,
        _racing,
        _refusing,
        _falling_back,
        _joining,
        _starting_damaged,
    ):
        told = scene(engine, folder / scene.__name__)
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, told)
        facts[scene.__name__] = everyone
    if dist.get_rank() == 0:
        (folder / "facts.json").write_text(json.dumps(facts))


def _rows(first: int, last: int) -> list[dict[str, Any]]:
    return [{"step": step, "loss": 1.0} for step in range(first, last + 1)]


def _saving(engine: Any, folder: Path) -> Any:
    from perennial.training.checkpoint.writer import Saver

    store, tap = open_store(folder), Tap()
    saver = Saver(_job(store.url), store, tap, None)
    wanted = [step for step in range(1, 41) if saver.wants(step)]
    before = 0
    for step in SAVED:
        saver.save(engine, step, _rows(before + 1, step))
        before = step
    saver.finish()
    saver.close()
    return {"saved": tap.saved_keys, "put off until saved": wanted}


def _going_on(engine: Any, folder: Path) -> Any:
    """A snapshot that is slow, and training that changes everything as soon as it may."""
    import torch
    from safetensors.torch import load

    from perennial.training.checkpoint.writer import Saver
    from perennial.training.engine.optimizer_state import optimizer_state

    store, tap = open_store(folder), Tap()
    saver = Saver(_job(store.url), store, tap, None)
    slow = threading.Event()
    saver._thread.submit(slow.wait)
    live = dict(engine.module.named_parameters()) | optimizer_state(engine, AdamWConfig())[0]
    before = {name: tensor.detach().clone() for name, tensor in live.items()}
    saver.save(engine, 5, _rows(1, 5))

    def go_on() -> None:
        saver.wait_for_snapshot()
        for tensor in live.values():
            tensor.detach().add_(1.0)

    training = threading.Thread(target=go_on)
    training.start()
    training.join(0.5)
    waits = training.is_alive()
    slow.set()
    training.join()
    saver.finish()
    saver.close()
    manifest = checkpoints.read_manifest(store, f"{FOLDER}/00000005")
    names = [name for name in manifest.files if name.endswith(".safetensors")]
    stored: dict[str, Any] = {}
    for name in names:
        stored |= load(store.read(manifest.key_of(f"{FOLDER}/00000005", name)))
    # transformers stores a few weights under older names
    known_names = [name for name in before if "|" in name or name in stored]
    same = [torch.equal(stored[name], before[name]) for name in known_names]
    for tensor, known in zip(live.values(), before.values(), strict=True):
        tensor.detach().copy_(known)
    return {"waits": waits, "same": all(same), "tensors": len(same)}


def _racing(engine: Any, folder: Path) -> Any:
    """Two worker groups at one step; a third comes after them."""
    from perennial.training.checkpoint.writer import Saver

    store, tap = open_store(folder), Tap()
    savers = [Saver(_job(store.url), store, tap, None) for _ in range(2)]
    for saver in savers:
        saver.save(engine, 5, _rows(1, 5))
    for saver in savers:
        saver.finish()
    before = store.read(f"{FOLDER}/00000005/manifest.json").decode()
    late = Saver(_job(store.url), store, tap, None)
    late.save(engine, 5, _rows(1, 5))
    late.finish()
    after = store.read(f"{FOLDER}/00000005/manifest.json").decode()
    for saver in (*savers, late):
        saver.close()
    return {"before": before, "after": after}


def _refusing(engine: Any, folder: Path) -> Any:
    """The store's folder is a file: nothing can be written until it is gone."""
    import torch.distributed as dist

    from perennial.training.checkpoint.writer import Saver

    store, tap = open_store(folder), Tap()
    saver = Saver(_job(store.url, max_failed_checkpoints=2), store, tap, None)
    reached: list[Any] = []
    if dist.get_rank() == 0:
        folder.write_text("in the way")
    dist.barrier()
    saver.save(engine, 5, [])
    saver.wait()
    reached.append(saver.hopeless)
    dist.barrier()
    if dist.get_rank() == 0:
        folder.unlink()
    dist.barrier()
    saver.save(engine, 15, _rows(1, 15))  # one that succeeds begins the count again
    saver.wait()
    committed = checkpoints.committed_steps(store, FOLDER)
    dist.barrier()
    if dist.get_rank() == 0:
        folder.rename(folder.with_suffix(".moved"))
        folder.write_text("in the way")
    dist.barrier()
    try:
        for step in (20, 25, 30):
            saver.save(engine, step, [])
            reached.append(step)
    except StoreFailed as failed:
        reached.append(str(failed))
    saver.close()
    return {"reached": reached, "committed": committed, "lines": tap.lines}


def _with_own_file(start: Any) -> Any:
    """What a worker of a group of the same size reads; nothing when the job begins again."""
    own = next(start.optimizer_files, None)
    if start.optimizer_steps is not None:
        assert own is not None
        assert own.name == f"optimizer-{os.environ['RANK']:0>2}-of-02.safetensors"
    return start


def _falling_back(engine: Any, folder: Path) -> Any:
    """Damage on load, file by file, until nothing is left."""
    import torch.distributed as dist

    from perennial.training.checkpoint.reader import begin_from_latest
    from perennial.training.checkpoint.writer import Saver

    store, tap = open_store(folder), Tap()
    job = _job(store.url, keep_last=3)
    saver = Saver(job, store, tap, None)
    for step in (5, 15, 20):
        saver.save(engine, step, _rows(step - 4, step))
    saver.finish()
    starts: list[Any] = []

    def start_after(damage: Callable[[], None]) -> None:
        dist.barrier()
        if dist.get_rank() == 0:
            damage()
        dist.barrier()
        scratch = folder.with_suffix(f".rank{dist.get_rank()}-{len(starts)}")
        start = begin_from_latest(job, store, scratch, tap, _with_own_file)
        starts.append([start.step, start.optimizer_steps, len(start.last_rows(100))])

    def key(step: int, name: str) -> str:
        at = checkpoints.folder_of(FOLDER, step)
        return checkpoints.read_manifest(store, at).key_of(at, name)

    start_after(lambda: None)
    start_after(lambda: _flip(store, key(20, "optimizer-01-of-02.safetensors")))
    saver.save(engine, 20, _rows(16, 20))  # its step is free again
    saver.finish()
    start_after(lambda: None)
    start_after(lambda: store.remove(key(20, "model.safetensors")))
    start_after(lambda: _flip(store, f"{FOLDER}/00000015/manifest.json"))
    start_after(lambda: store.write(f"{FOLDER}/00000005/manifest.json", b"{"))
    saver.close()
    return {"starts": starts, "lines": tap.lines}


def _joining(engine: Any, folder: Path) -> Any:
    """What the next stage has of the moments, by `stages.optimizer`; they are zero before."""
    import torch.distributed as dist

    from perennial.training.checkpoint.reader import begin_from_latest
    from perennial.training.checkpoint.resume import load_state
    from perennial.training.checkpoint.writer import Saver
    from perennial.training.engine.optimizer_state import optimizer_state

    store, tap = open_store(folder), Tap()
    saver = Saver(_job(store.url), store, tap, None)
    saver.save(engine, 40, _rows(1, 40))
    saver.finish()
    saver.close()
    at = f"{FOLDER}/00000040"
    later = dataclasses.replace(
        _job(store.url), name="01-more", folder="checkpoints/01-more", first_step=40, start=at
    )
    kept = {}
    for how in get_args(OptimizerAtJoin):
        job = dataclasses.replace(later, optimizer=how)

        def begin(start: Any, job: Job = job) -> list[bool]:
            moments = optimizer_state(engine, AdamWConfig())[0]
            for tensor in moments.values():
                tensor.zero_()
            load_state(engine, job, start)
            moments = optimizer_state(engine, AdamWConfig())[0]
            return [
                any(bool(t.any()) for name, t in moments.items() if name.endswith(f"|{moment}"))
                for moment in AdamWConfig.state_tensors
            ]

        scratch = folder.with_suffix(f".{how}.rank{dist.get_rank()}")
        kept[how] = begin_from_latest(job, store, scratch, tap, begin)
    return kept


def _starting_damaged(engine: Any, folder: Path) -> Any:
    import torch.distributed as dist

    from perennial.training.checkpoint.reader import begin_from_latest
    from perennial.training.checkpoint.writer import Saver

    store, tap = open_store(folder), Tap()
    saver = Saver(_job(store.url), store, tap, None)
    saver.save(engine, 40, _rows(1, 40))
    saver.finish()
    saver.close()
    at = f"{FOLDER}/00000040"
    later = dataclasses.replace(
        _job(store.url), name="01-more", folder="checkpoints/01-more", first_step=40, start=at
    )
    scratch = folder.with_suffix(f".rank{dist.get_rank()}")
    sound = begin_from_latest(later, store, scratch, tap, _with_own_file)
    dist.barrier()
    if dist.get_rank() == 0:
        _flip(store, checkpoints.read_manifest(store, at).key_of(at, "model.safetensors"))
    dist.barrier()
    try:
        begin_from_latest(later, store, scratch, tap, _with_own_file)
    except StartDamaged as damaged:
        return {"sound": [sound.step, sound.optimizer_steps], "says": str(damaged)}
    return None


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What happened in every scene, by rank."""
    folder = tmp_path_factory.mktemp("scenes")
    run_on(2, _play, folder)
    return folder, json.loads((folder / "facts.json").read_text())


Facts = tuple[Path, dict[str, Any]]


def test_i6_checkpoints_are_whole_and_transformers_loads_them(facts: Facts) -> None:
    from transformers import AutoModelForCausalLM

    store = open_store(facts[0] / "_saving")
    told = facts[1]["_saving"]
    assert told[0]["saved"] == [f"{FOLDER}/{step:08d}" for step in SAVED]
    assert checkpoints.committed_steps(store, FOLDER) == [11, 20, 25], "the warmup ends at 11"
    at = f"{FOLDER}/00000025"
    manifest = checkpoints.read_manifest(store, at)
    _check_whole(store, at)
    rows = store.read(manifest.key_of(at, "metrics.jsonl")).splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, 26))
    place = Path(store.url) / checkpoints.place_of(at, manifest.attempt)
    model = AutoModelForCausalLM.from_pretrained(place, local_files_only=True)
    assert model.config.hidden_size == 16


def test_a_checkpoint_that_is_due_stays_due_until_it_is_saved(facts: Facts) -> None:
    due = facts[1]["_saving"][0]["put off until saved"]
    assert due == list(range(5, 41))


def test_i6_a_snapshot_is_of_its_step_though_training_goes_on(facts: Facts) -> None:
    for told in facts[1]["_going_on"]:
        assert told["tensors"] > 20
        assert (told["waits"], told["same"]) == (True, True)


def test_i6_of_two_groups_at_one_step_one_commits_and_nobody_changes_it(facts: Facts) -> None:
    told = facts[1]["_racing"][0]
    assert told["before"] == told["after"]
    _check_whole(open_store(facts[0] / "_racing"), f"{FOLDER}/00000005")
    attempts = list((facts[0] / "_racing" / FOLDER / "00000005").iterdir())
    assert len(attempts) == 2, "the losers' files are gone"


def test_failed_uploads_are_told_and_too_many_in_a_row_stop(facts: Facts) -> None:
    first, second = facts[1]["_refusing"]
    assert first["reached"] == second["reached"], "every rank stops at the same step"
    assert first["committed"] == [15]
    assert first["reached"][:3] == ["", 20, 25]
    assert "2 checkpoints in a row could not be stored, the last at step 25" in first["reached"][3]
    assert [line.partition(" could")[0] for line in first["lines"]] == [
        f"the checkpoint of step {step}" for step in (5, 20, 25)
    ]


def test_a_damaged_checkpoint_is_told_and_the_one_before_taken(facts: Facts) -> None:
    first, second = facts[1]["_falling_back"]
    assert first["starts"] == second["starts"], "every rank goes on from the same step"
    assert first["starts"] == [
        [20, 1, 15],
        [15, 1, 10],
        [20, 1, 20],
        [15, 1, 10],
        [5, 1, 5],
        [0, None, 0],
    ]
    says = [line.partition("; ") for line in first["lines"]]
    assert [after for _, _, after in says] == [
        "going on from the checkpoint of step 15",
        "going on from the checkpoint of step 15",
        "going on from the checkpoint of step 5",
        "going on from its beginning",
    ]
    assert re.search(
        r"/optimizer-01-of-02\.safetensors is damaged "
        r"\(its manifest has sha256 \w{64}, two reads gave \w{64}\)$",
        says[0][0],
    )
    assert re.search(
        r"/model\.safetensors is missing \(its manifest has sha256 \w{64}\)$", says[1][0]
    )
    assert says[3][0] == f"{FOLDER}/00000005/manifest.json cannot be read"


def test_a_damaged_start_of_a_stage_is_named_and_not_replaced(facts: Facts) -> None:
    for told in facts[1]["_starting_damaged"]:
        assert told["sound"] == [40, None]
        assert "model.safetensors is damaged" in told["says"]
        assert "01-more starts from there" in told["says"]


def test_a_stage_begins_with_the_moments_that_its_join_keeps(facts: Facts) -> None:
    for told in facts[1]["_joining"]:
        assert told == {
            "reset": [False, False],
            "keep-second-moment": [False, True],
            "keep": [True, True],
        }


def _check_whole(store: Store, at: str) -> None:
    manifest = checkpoints.read_manifest(store, at)
    assert {"config.json", "model.safetensors", "metrics.jsonl"} < set(manifest.files)
    assert sum(name.startswith("optimizer-") for name in manifest.files) == 2
    for name, entry in manifest.files.items():
        path = Path(store.url) / manifest.key_of(at, name)
        assert checkpoints.digest(path) == entry.sha256, name
