"""Trunk kits: what is in them, what they are refused for, and what a run takes over of one."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from perennial.audit.checks import plan_folders
from perennial.config import RunSpec
from perennial.config.load import parse
from perennial.config.training import ModelSpec
from perennial.controller.context import Workspace
from perennial.controller.origin import begin_from_stored
from perennial.controller.trunk_kit import make_kit, plan_kit
from perennial.corpora import import_tokenizer
from perennial.errors import StartDamaged
from perennial.runs.state import RunState, Stage
from perennial.schedules import CosineSchedule, from_dict, to_dict
from perennial.store import Store, open_store
from perennial.training.checkpoint.reader import begin_from_latest
from perennial.training.kit import state_files
from perennial.training.kit.manifest import KitManifest, read_kit
from perennial.training.model.initial import import_model, import_state, read_initial
from tests.support.committed import commit_folder
from tests.support.event_factory import imported, walk
from tests.support.played_driver import PlayedDriver
from tests.support.refusal import refused
from tests.support.small_manifest import small_manifest
from tests.support.small_models import small_model
from tests.support.small_tokenizers import byte_level_json
from tests.support.tiny_run import tiny_run

SOURCE = "00-a@10"
KEY = "checkpoints/00-a/00000010"


def _commit(store: Store, folder: Path, *, rounded: bool) -> dict[str, torch.Tensor]:
    """Commit a checkpoint of two workers; return its fp32 weights and moments, by their keys."""
    model = small_model("gpt_neox", vocab_size=300, max_position_embeddings=128)
    generator = torch.Generator().manual_seed(1)
    whole: dict[str, torch.Tensor] = {}
    parts: list[dict[str, torch.Tensor]] = [{}, {}]
    for name, parameter in model.named_parameters():
        for kind in ("exp_avg", "exp_avg_sq", *(["master"] if rounded else [])):
            flat = torch.randn(parameter.numel(), generator=generator)
            flat = parameter.detach().view(-1) + 1e-4 * flat if kind == "master" else flat
            whole[f"{name}|0|{kind}"] = flat
            cut = len(flat) // 3
            parts[0][f"{name}|0|{kind}"] = flat[:cut].clone()
            parts[1][f"{name}|{cut}|{kind}"] = flat[cut:].clone()
    (model.to(torch.bfloat16) if rounded else model).save_pretrained(folder)
    for rank, tensors in enumerate(parts):
        save_file(tensors, folder / f"optimizer-{rank:02d}-of-02.safetensors")
    (folder / "metrics.jsonl").write_text("{}\n")
    commit_folder(store, folder, key=KEY)
    return whole


def _work(folder: Path, url: str) -> Workspace:
    own = tiny_run(folder, url)
    own["schedule"] = {"kind": "constant", "eta_const": 1e-3, "warmup": "4 steps"}
    own["release"] |= {"license": "apache-2.0", "languages": ["en"]}
    spec, state, store = RunSpec.model_validate(own), RunState(), open_store(url)
    walk(state, "a")
    (folder / "tokenizer.json").write_text(json.dumps(byte_level_json(300)))
    import_tokenizer(store, folder / "tokenizer.json")
    work = SimpleNamespace(
        spec=spec,
        state=state,
        store=store,
        where="run.yaml",
        log=lambda _: None,
        manifests=lambda: {"a": small_manifest("a")},
        beside=nullcontext,
    )
    return cast("Workspace", work)


@pytest.fixture
def work(tmp_path: Path, store_url: str) -> Workspace:
    """A run with one stage of ten steps and its checkpoint."""
    made = _work(tmp_path, store_url)
    _commit(made.store, tmp_path / "checkpoint", rounded=False)
    return made


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """A kit in a folder."""
    made = _work(tmp_path, str(tmp_path / "store"))
    _commit(made.store, tmp_path / "checkpoint", rounded=False)
    make_kit(made, to=str(tmp_path / "kit"))
    return tmp_path / "kit"


def test_i8_i10_a_kit_holds_the_trunk_and_the_digest_of_every_file(
    work: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_files, "LARGEST_BYTES", 8000)
    expected = _commit(open_store(tmp_path / "copy"), tmp_path / "again", rounded=False)
    assert plan_kit(work)[0].startswith(f"write a trunk kit of {SOURCE} to {work.store.url}/kits/")
    made = make_kit(work)
    work.spec = work.spec.model_copy(
        update={"release": work.spec.release.model_copy(update={"license": "mit"})}
    )
    assert make_kit(work) == made, "the same again changes nothing, whatever its card would say"
    place = open_store(made.place)
    kit = KitManifest.model_validate_json(place.read("kit.json"))
    names = {entry.key for entry in place.list()}
    assert set(kit.files) | {"kit.json", "run.yaml"} == names
    assert sum(entry.size_bytes for entry in place.list()) == made.size_bytes
    assert read_kit(place, made.place) is not None
    local = tmp_path / "local"
    for name in names:
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        place.download(name, local / name)
    stored: dict[str, torch.Tensor] = {}
    for file in (local / "optimizer").iterdir():
        stored |= load_file(file)
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[key], expected[key]) for key in expected)
    assert AutoModelForCausalLM.from_pretrained(local).dtype == torch.float32
    assert AutoTokenizer.from_pretrained(local)("a")["input_ids"]
    assert (kit.source, kit.phase, kit.eta) == (SOURCE, "constant", 1e-3)
    assert kit.corpora["a"].tokens_seen == kit.stages[0].tokens["a"] == 10 * 8 * 128
    card = (local / "README.md").read_text()
    assert card.startswith("---\n")
    assert "license: apache-2.0" in card


def test_the_run_file_of_a_kit_goes_on_where_the_trunk_stands(kit: Path) -> None:
    spec = parse(yaml.safe_load((kit / "run.yaml").read_text()), RunSpec, "run.yaml")
    assert (spec.model.path, spec.tokenizer.path, spec.stages.optimizer) == (".", ".", "keep")
    assert spec.tokenizer.end_of_document == "<|endoftext|>"
    curve = spec.schedule.build(0, 100, spec.tokens_per_step)
    trunk = from_dict(json.loads((kit / "kit.json").read_text())["schedule"])
    assert [curve.eta(step) for step in range(5)] == [trunk.eta(10 + step) for step in range(5)]
    assert curve.phase(0) == "constant"


def test_weights_that_are_stored_in_fewer_bits_become_the_ones_that_were_trained(
    tmp_path: Path,
) -> None:
    work = _work(tmp_path, str(tmp_path / "store"))
    whole = _commit(work.store, tmp_path / "checkpoint", rounded=True)
    place = Path(make_kit(work).place)
    for name, parameter in AutoModelForCausalLM.from_pretrained(place).named_parameters():
        assert torch.equal(parameter.detach().view(-1), whole[f"{name}|0|master"])
    assert "master" in json.loads((place / "kit.json").read_text())["optimizer"]["tensors"]


def test_a_trunk_that_decayed_and_a_place_that_is_taken_are_refused(
    kit: Path, tmp_path: Path
) -> None:
    work = _work(tmp_path, str(tmp_path / "store"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    with refused("place-unusable", "--to"):
        make_kit(work, to=str(other))
    (kit / "README.md").write_text("mine")
    with refused("place-unusable", "--to"):
        make_kit(work, to=str(kit))
    assert (kit / "README.md").read_text() == "mine"
    stage = work.state.stages[0]
    decaying = CosineSchedule(eta_max=1e-3, eta_min=1e-4, warmup_steps=2, steps=10)
    work.state.stages[0] = Stage(**{**vars(stage), "schedule": to_dict(decaying)})
    with refused("schedule-changed", "schedule.kind"):
        plan_kit(work)
    cosine = {"kind": "cosine", "eta_max": 1e-3, "eta_min": 1e-4}
    work.spec = RunSpec.model_validate(tiny_run(tmp_path) | {"schedule": cosine})
    with refused("trunk-decayed", "--trunk-kit"):
        plan_kit(work)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "config.json", "README.md", "model.safetensors", "kit.json"]
)
def test_i10_a_kit_with_another_file_is_refused_by_its_name(
    kit: Path, tmp_path: Path, name: str
) -> None:
    data = bytearray((kit / name).read_bytes())
    data[len(data) // 2] ^= 1
    (kit / name).write_bytes(data if name != "kit.json" else data[:-9])
    with refused("kit-altered", "model.path") as caught:
        import_model(open_store(tmp_path / "new"), ModelSpec(path=str(kit)), 300, 0, 16)
    assert f"{kit}: {name} " in str(caught.value)
    (kit / name).unlink()
    if name in ("tokenizer.json", "README.md"):
        with refused("kit-altered", "model.path") as caught:
            read_kit(open_store(kit), str(kit))
        assert f"{name} is missing" in str(caught.value)


def _started(work: Workspace, **settings: Any) -> Stage:
    walk(work.state, "b", "landed", "ingesting", "ready", "started")
    return Stage(**{**vars(work.state.stages[-1]), "start": None, **settings})


def _new_run(kit: Path, folder: Path, optimizer: str = "adamw") -> Workspace:
    """A run that starts from the kit, as far as it is asked here."""
    document = yaml.safe_load((kit / "run.yaml").read_text())
    document |= {"store": str(folder), "model": {"path": str(kit)}}
    own = {k: v for k, v in document["training"].items() if k.endswith("batch")}
    document["training"] = own | {"optimizer": {"kind": optimizer}}
    work = Workspace(RunSpec.model_validate(document), "run.yaml")
    work.take_charge()
    import_tokenizer(work.store, kit)
    return work


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("join", ["keep", "keep-second-moment", "reset"])
def test_i10_i11_a_run_takes_over_the_state_of_the_kit_that_it_names(
    kit: Path, tmp_path: Path, join: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perennial.runs.job_factory import branch_job

    work = _new_run(kit, tmp_path / "new")
    stage = _started(_work(tmp_path, str(tmp_path / "other")), optimizer=join)
    monkeypatch.setattr("perennial.controller.origin.usable", lambda _: [])
    begin_from_stored(work, stage)
    base = work.state.base
    assert base is not None
    assert base.imported.kit is not None
    assert base.imported.kit.source == SOURCE
    kept = read_initial(work.store, "models/optimizer") if join != "reset" else None
    assert work.store.exists("models/optimizer/manifest.json") == (kept is not None)
    manifest: Any = SimpleNamespace(
        name="b",
        shards=(),
        sequence_length=16,
        vocabulary=300,
        end_of_document=0,
        begin_of_document=None,
        token_bytes=2,
        has_padding=False,
        erased=False,
    )
    job = branch_job(
        work.spec,
        {},
        {"b": manifest, "a": manifest},
        name="00-b",
        mix=stage.mix,
        schedule=from_dict(stage.schedule),
        first_step=0,
        start="",
    )
    job = type(job)(**{**vars(job), "start": None, "optimizer": join})

    def begin(start: Any) -> tuple[int | None, dict[str, torch.Tensor]]:
        tensors: dict[str, torch.Tensor] = {}
        for path in start.optimizer_files:
            tensors |= load_file(path)
        return start.optimizer_steps, tensors

    steps, tensors = begin_from_latest(job, work.store, tmp_path / "s", PlayedDriver(), begin)
    assert (steps, bool(tensors)) == ((4, True) if kept else (None, False))
    if kept:
        (name,) = kept[0].files
        work.store.write(f"models/optimizer/{name}", b"another")
        with pytest.raises(StartDamaged, match=f"models/optimizer/{name} is damaged"):
            begin_from_latest(job, work.store, tmp_path / "t", PlayedDriver(), begin)
        work.store.remove("models/optimizer/manifest.json")
        with pytest.raises(StartDamaged, match=r"models/optimizer/manifest\.json is missing"):
            begin_from_latest(job, work.store, tmp_path / "u", PlayedDriver(), begin)
    work.close()


def test_i10_the_state_of_another_kit_or_optimizer_is_refused(kit: Path, tmp_path: Path) -> None:
    store = open_store(tmp_path / "new")
    import_model(store, ModelSpec(path=str(kit)), 300, 0, 16)
    (state,) = (kit / "optimizer").iterdir()
    whole = state.read_bytes()
    state.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with refused("kit-altered", "model.path") as caught:
        import_state(store, str(kit))
    assert f"optimizer/{state.name} is damaged" in str(caught.value)
    assert not store.exists("models/optimizer/manifest.json")
    state.write_bytes(whole)
    manifest = kit / "kit.json"
    manifest.write_text(manifest.read_text().replace('"run":"tiny"', '"run":"tony"', 1) + " ")
    with refused("kit-altered", "model.path") as caught:
        import_state(store, str(kit))
    assert "whose model the run starts from" in str(caught.value)
    work = _new_run(kit, tmp_path / "other-optimizer", optimizer="ademamix")
    stage = _started(_work(tmp_path, str(tmp_path / "other")), optimizer="keep")
    with refused("optimizer-changed"):
        begin_from_stored(work, stage)
    work.close()


def test_i11_the_optimizers_steps_before_the_trunk_are_of_its_kit(
    kit: Path,
) -> None:
    origin = read_kit(open_store(kit), str(kit))
    assert origin is not None
    state = RunState()
    state.apply(imported().model_copy(update={"kit": origin[1]}))
    walk(state, "b")
    (plan,) = plan_folders(state, 128, {}).values()
    assert (plan.kit_steps, origin[0].optimizer.steps) == (4, 4)
    other = RunState()
    walk(other, "b")
    (plan,) = plan_folders(other, 128, {}).values()
    assert plan.kit_steps == 0
