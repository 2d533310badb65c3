"""What other software makes of the trunk's last steps is an event; the training is played."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save
from typer.testing import CliRunner

import perennial
from perennial.audit.upgrade import StackComparison, compare_stacks
from perennial.audit.verify import verify
from perennial.cli.app import app
from perennial.errors import Busy, InputError
from perennial.runs.event_codec import decode
from perennial.runs.lease import hold_alone
from perennial.runs.ledger import FOLDER, now
from perennial.runs.storage.store_events import Upgraded
from perennial.store import Log, Store, open_store
from perennial.training.checkpoint.manifest import METRICS
from tests.integration.audit.test_retrained_checkpoints import (
    BEFORE,
    END,
    MOMENTS,
    WEIGHTS,
    Player,
    place,
)
from tests.integration.audit.test_verify import edit
from tests.support.killed_process import Killed, kill_at
from tests.support.refusal import refused
from tests.support.small_ledger import objects
from tests.support.tiny_run import tiny_run, write_run


def write_file(store: Store, name: str, data: bytes) -> None:
    """Replace a file of the last checkpoint, and its digest."""
    store.write(place(END, name), data)
    entry = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit(store, f"{END}/manifest.json", lambda manifest: manifest["files"].update({name: entry}))


def with_losses(data: bytes, more: float) -> bytes:
    rows = [json.loads(line) for line in data.splitlines()]
    rows = [row | {"loss": 3.0 + more * (row["step"] == 23)} for row in rows]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.fixture
def player(store: Store) -> Player:
    """A store whose last checkpoint names its stack, and software that computes otherwise."""
    stack = {"torch": "1", "ray": "2", "processor": "CPU"}
    edit(store, f"{END}/manifest.json", lambda manifest: manifest.update(stack=stack))
    write_file(store, METRICS, with_losses(store.read(place(END, METRICS)), 0.0))
    other = objects(store)
    weights = load(other[place(END, WEIGHTS)])["w"]
    weights[0] += np.float32(0.5)
    other[place(END, WEIGHTS)] = save({"w": weights})
    other[place(END, METRICS)] = with_losses(other[place(END, METRICS)], 0.25)
    return Player(store, other)


def compare(store: Store, player: Player) -> StackComparison:
    return compare_stacks(store, perennial.open(store.url).spec, player.train)


def told(store: Store) -> list[Upgraded]:
    story = [decode(data).event for _, data in Log(store, FOLDER).tail(0)]
    return [event for event in story if isinstance(event, Upgraded)]


def test_the_difference_of_loss_and_weights_is_an_event(store: Store, player: Player) -> None:
    before = objects(store)
    done = compare(store, player)
    assert (done.checkpoint, done.source, done.steps, done.workers) == (END, BEFORE, 2, 2)
    assert done.changes == ["torch 1 -> 2", "ray 2 -> none", "processor CPU -> none"]
    assert [(its.step, its.before, its.after) for its in done.losses] == [
        (23, 3.0, 3.25), (24, 3.0, 3.0),
    ]  # fmt: skip
    assert (done.same, done.loss, done.largest, done.is_rounding) == (False, 0.25, 0.5, False)
    assert done.relative == pytest.approx(0.5 / (24 * 8))
    (event,) = told(store)
    assert (event.recorded["torch"], event.installed["torch"]) == ("1", "2")
    assert (event.loss, event.largest, event.relative) == (0.25, 0.5, done.relative)
    assert compare(store, player) == done
    assert len(told(store)) == 1, "the same again is no news"
    after = objects(store)
    new = {key for key in after if after[key] != before.get(key)}
    assert {key.partition("/")[0] for key in new} <= {"ledger", "leases"}
    assert before.keys() <= after.keys()
    assert verify(store).findings == []


def test_the_same_bits_are_said_to_be_the_same(local: Store) -> None:
    done = compare(local, Player(local, objects(local)))
    assert (done.same, done.loss, done.largest, done.relative) == (True, 0.0, 0.0, 0.0)
    assert (done.before, done.changes) == ({}, []), "an earlier version recorded none"
    assert done.is_rounding


def test_other_moments_are_not_the_same(local: Store) -> None:
    other = objects(local)
    other[place(END, MOMENTS)] = save({"w": np.zeros(64, np.float32)})
    done = compare(local, Player(local, other))
    assert (done.same, done.largest) == (False, 0.0)


def test_a_model_of_other_tensors_is_refused(local: Store) -> None:
    other, before = objects(local), objects(local)
    other[place(END, WEIGHTS)] = save({"v": np.zeros(64, np.float32)})
    with refused("upgrade-other-tensors"):
        compare(local, Player(local, other))
    assert told(local) == []
    assert {k: v for k, v in objects(local).items() if k in before} == before


def test_it_does_not_run_beside_a_process_that_writes(local: Store) -> None:
    player = Player(local, objects(local))
    with hold_alone(local, "repair", now()), pytest.raises(Busy):
        compare(local, player)
    assert player.jobs == []


@pytest.mark.long
def test_killed_before_any_change_a_repetition_completes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    player, whole = Player(store, objects(store)), objects(store)
    with monkeypatch.context() as counting:
        changes = kill_at(counting, -1)
        compare(store, player)
    expected = objects(store).keys()
    for number in range(1, changes() + 1):
        for info in store.list():
            store.remove(info.key)
        for key, data in whole.items():
            store.write(key, data)
        with monkeypatch.context() as dying, pytest.raises(Killed):
            kill_at(dying, number)
            compare(store, player)
        assert compare(store, player).same
        assert len(told(store)) == 1
        assert objects(store).keys() == expected


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    run_file = write_run(tmp_path, tiny_run(tmp_path))
    with pytest.raises(InputError) as refusal:
        perennial.open(run_file).upgrade()
    assert refusal.value.code == "nothing-trained"
    assert open_store(tmp_path / "store").list() == []


def test_the_command_says_which_steps_it_would_take(local: Store) -> None:
    planned = CliRunner().invoke(app, ["upgrade", local.url, "--dry-run", "--json"])
    assert planned.exit_code == 0, planned.output
    first, second = json.loads(planned.stdout)["todo"]
    assert first == f"take 2 steps from {BEFORE} to {END} once more, on 2 workers"
    assert "not recorded" in second
