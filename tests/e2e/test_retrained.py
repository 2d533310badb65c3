"""Damaged checkpoints of a run on a real cluster are trained again, and are the same bit by bit."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from perennial.runs.event_codec import decode
from perennial.runs.ledger import FOLDER, Ledger
from perennial.runs.storage.store_events import Mended
from perennial.store import Log, Store, open_store
from perennial.training.checkpoint import manifest as checkpoint
from tests.support import trained_run as shared
from tests.support.cli import perennial, perennial_json, start
from tests.support.tiny_run import write_run, write_texts
from tests.support.trained_run import Lineage

WEIGHTS = "model.safetensors"
MOMENTS = "optimizer-01-of-02.safetensors"


def _copied(lineage: Lineage, folder: Path, store: Store) -> Path:
    """The run file of a copy of the shared run."""
    for info in lineage.store.list():
        if not info.key.startswith("mlflow"):
            store.write(info.key, lineage.store.read(info.key))
    return write_run(folder, shared.document(folder) | {"store": store.url})


def _key(store: Store, at: str, name: str) -> str:
    return checkpoint.read_manifest(store, at).key_of(at, name)


def _flip(store: Store, key: str) -> bytes:
    """Alter one bit of an object; what it was."""
    sound = store.read(key)
    data = bytearray(sound)
    data[len(data) // 2] ^= 1
    store.write(key, bytes(data))
    return sound


def _told(store: Store) -> list[Mended]:
    story = [decode(data).event for _, data in Log(store, FOLDER).tail(0)]
    return [event for event in story if isinstance(event, Mended)]


def _objects(store: Store) -> dict[str, bytes]:
    return {i.key: store.read(i.key) for i in store.list() if not i.key.startswith("leases/r")}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["local", "s3"])
def test_i9_damaged_checkpoints_are_trained_again_to_the_same_bits(
    lineage: Lineage, ray_head: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest,
    kind: str,
) -> None:  # fmt: skip
    env = {**ray_head, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    url = str(tmp_path / "store") if kind == "local" else request.getfixturevalue("s3_url")
    store = open_store(url)
    run_file = _copied(lineage, tmp_path, store)
    ends = Ledger(store).read().ends
    first, second = ends["00-help"], ends["01-code"]
    moments, weights = _key(store, first, MOMENTS), _key(store, second, WEIGHTS)
    sound = store.read(moments), _flip(store, weights)
    store.remove(moments)
    perennial("verify", run_file, code=1, env=env)
    done = perennial_json("repair", run_file, "--retrain", env=env)
    assert [(its["checkpoint"], its["code"]) for its in done["retrained"]] == [
        (first, ""), (second, ""),
    ]  # fmt: skip
    assert done["findings"] == []
    assert (store.read(moments), store.read(weights)) == sound
    assert [event.checkpoint for event in _told(store)] == [first, second]
    assert not [info.key for info in store.list() if "retraining" in info.key]
    assert perennial_json("verify", run_file, env=env)["holds"]

    more = tmp_path / "more.jsonl"
    lines = write_texts(tmp_path)["help"].read_text().splitlines()
    more.write_text(
        "".join(json.dumps({"text": json.loads(t)["text"][::-1]}) + "\n" for t in lines)
    )
    perennial("land", run_file, "more", more, env=env)
    assert perennial_json("run", run_file, env=env)["trained"] == 1
    assert perennial_json("verify", run_file, env=env)["holds"]


@pytest.mark.long
def test_what_is_not_the_same_is_left_and_a_killed_training_goes_on(
    lineage: Lineage, ray_head: dict[str, str], tmp_path: Path
) -> None:
    store = open_store(tmp_path / "store")
    run_file = _copied(lineage, tmp_path, store)
    weights = _key(store, Ledger(store).read().ends["01-code"], WEIGHTS)
    sound = _flip(store, weights)
    before = _objects(store)
    other = ("repair", run_file, "training.micro_batch=1", "--retrain", "--json")
    process = start(*other, env=ray_head)
    out, err = process.communicate()
    assert process.returncode == 1, (out, err)
    (its,) = json.loads(out)["retrained"]
    assert its["code"] == "retraining-differs"
    assert "optimizer-00-of-02.safetensors" in its["reason"] or WEIGHTS in its["reason"]
    assert _objects(store) == before

    process = start("repair", run_file, "--retrain", env=ray_head)
    while not store.list("starts/retraining"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)  # polling a condition: the workers have begun
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert _told(store) == []
    assert perennial_json("repair", run_file, "--retrain", env=ray_head)["findings"] == []
    assert store.read(weights) == sound
    assert len(_told(store)) == 1
    assert not [info.key for info in store.list() if "retraining" in info.key]
    assert perennial_json("verify", run_file, env=ray_head)["holds"]


@pytest.mark.long
def test_what_other_software_makes_of_the_last_steps_is_recorded(
    lineage: Lineage, ray_head: dict[str, str], tmp_path: Path
) -> None:
    store = open_store(tmp_path / "store")
    run_file = _copied(lineage, tmp_path, store)
    end = Ledger(store).read().ends["01-code"]
    manifest = json.loads(store.read(f"{end}/manifest.json"))
    installed = manifest["stack"]["torch"]
    manifest["stack"]["torch"] = "1.0.0"
    store.write(f"{end}/manifest.json", json.dumps(manifest).encode())
    before = _objects(store)
    same = perennial_json("upgrade", run_file, env=ray_head)
    assert (same["same"], same["loss"], same["largest"]) == (True, 0.0, 0.0)
    assert same["changes"] == [f"torch 1.0.0 -> {installed}"]
    assert [its["step"] for its in same["losses"]] == [*range(121 - same["steps"], 121)]
    other = perennial_json("upgrade", run_file, "training.micro_batch=1", env=ray_head)
    assert not other["same"]
    assert other["is_rounding"]
    assert 0 < other["relative"] < 1e-4
    after = _objects(store)
    assert {key for key in after if after[key] != before.get(key)} == {
        "leases/head.json", *sorted(key for key in after if key.startswith("ledger/"))[-2:],
    }  # fmt: skip
    assert before.keys() <= after.keys()
    assert perennial_json("verify", run_file)["holds"]
    assert perennial_json("run", run_file, env=ray_head)["trained"] == 0
