"""Damaged checkpoints of a crafted run are trained again; the training is played from a copy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.testing import CliRunner

import perennial
from perennial.audit.repair import Repair, repair
from perennial.audit.retraining import Retraining
from perennial.cli.app import app
from perennial.errors import TrainingStopped
from perennial.runs.event_codec import decode
from perennial.runs.events import Erased
from perennial.runs.ledger import FOLDER, Ledger, now
from perennial.runs.storage.store_events import Mended
from perennial.store import Log, Store, open_store
from perennial.training.checkpoint import manifest as checkpoints
from perennial.training.checkpoint.manifest import METRICS, CheckpointManifest
from perennial.training.job import Job
from tests.integration.audit.test_verify import edit, flip
from tests.support.killed_process import Killed, kill_at
from tests.support.small_ledger import objects
from tests.support.synthetic_run import ATTEMPT
from tests.support.tiny_run import tiny_run, write_run

END = "checkpoints/01-code/00000024"
BEFORE = "checkpoints/01-code/00000022"
FIRST_END = "checkpoints/00-help/00000012"
WEIGHTS, MOMENTS = "model.safetensors", "optimizer-01-of-02.safetensors"
SHARD = "corpora/code/shard-00000.parquet"


def place(checkpoint: str, name: str) -> str:
    return f"{checkpoint}/{ATTEMPT}/{name}"


@dataclass
class Player:
    """Trains a job by copying what a sound store has of it, and keeps the jobs."""

    store: Store
    sound: dict[str, bytes]
    jobs: list[Job] = field(default_factory=list)

    def train(self, job: Job) -> None:
        self.jobs.append(job)
        source = job.folder.removeprefix("retraining/")
        manifest = CheckpointManifest.model_validate_json(self.sound[f"{source}/manifest.json"])
        key = checkpoints.folder_of(job.folder, manifest.step)
        files = {}
        for name in manifest.files:
            data = self.sound[manifest.key_of(source, name)]
            if name == METRICS:
                data = data.replace(b"1000.0", b"2000.0")
            self.store.write(f"{key}/again/{name}", data)
            digest = hashlib.sha256(data).hexdigest()
            files[name] = checkpoints.FileEntry(size_bytes=len(data), sha256=digest)
        its = {"attempt": "again", "files": files, "stack": {"torch": "2"}}
        checkpoints.commit(self.store, key, manifest.model_copy(update=its))


@pytest.fixture
def player(store: Store) -> Player:
    return Player(store, objects(store))


def mend(store: Store, player: Player, *, acts: bool = True) -> Repair:
    spec = perennial.open(store.url).spec
    return repair(store, None, acts=acts, retraining=Retraining(store, spec, player.train))


def told(store: Store) -> list[Mended]:
    story = [decode(data).event for _, data in Log(store, FOLDER).tail(0)]
    return [event for event in story if isinstance(event, Mended)]


@pytest.mark.parametrize("name", [WEIGHTS, MOMENTS, "config.json", METRICS])
@pytest.mark.parametrize("is_lost", [True, False], ids=["lost", "altered"])
def test_a_damaged_file_is_trained_again(
    store: Store, player: Player, name: str, is_lost: bool
) -> None:
    before = objects(store)
    key = place(END, name)
    if is_lost:
        store.remove(key)
    else:
        flip(store, key)
    altered = objects(store)
    (planned,) = mend(store, player, acts=False).retrained
    assert objects(store) == altered, "what is planned writes nothing"
    assert (planned.source, planned.steps, planned.workers) == (BEFORE, 2, 2)
    done = mend(store, player)
    assert (done.retrained, done.findings) == ([planned], [])
    (job,) = player.jobs
    assert (job.first_step, job.last_step, job.start) == (12, 24, FIRST_END)
    assert str(job.training.workers) == "2"
    after = objects(store)
    if name == METRICS:
        assert b"2000.0" in after[key], "its times are those of the second training"
    else:
        assert after[key] == before[key]
    kept = {key: data for key, data in after.items() if key.startswith("aside/")}
    assert (altered.get(key) in kept.values()) is not is_lost
    changed = {k for k in before if after.get(k) != before[k] and not k.startswith("leases/")}
    assert changed == ({key, f"{END}/manifest.json"} if name == METRICS else set())
    assert not [key for key in after if "retraining" in key]
    (event,) = told(store)
    assert (event.checkpoint, event.source, event.files) == (END, BEFORE, (name,))


def test_damaged_checkpoints_are_mended_in_the_order_of_the_trunk(
    local: Store,
) -> None:
    player = Player(local, objects(local))
    for key in (END, BEFORE, FIRST_END):
        flip(local, place(key, WEIGHTS))
    done = mend(local, player)
    assert [(its.checkpoint, its.code) for its in done.retrained] == [
        (FIRST_END, ""), (BEFORE, ""), (END, ""),
    ]  # fmt: skip
    assert done.findings == []
    assert len(told(local)) == 3


def test_a_sound_checkpoint_before_it_is_the_source(local: Store) -> None:
    for info in local.list("checkpoints/00-help"):
        if not info.key.startswith(FIRST_END):
            local.remove(info.key)
    player = Player(local, objects(local))
    flip(local, place(FIRST_END, WEIGHTS))
    (first,) = mend(local, player).retrained
    assert (first.source, first.steps) == ("", 12), "from the model that the run begins with"
    (event,) = told(local)
    assert event.source is None


def test_a_stage_keeps_the_settings_under_which_it_began(local: Store) -> None:
    player = Player(local, objects(local))
    flip(local, place(END, WEIGHTS))
    changed = ["training.gradient_clip=0.5", "training.weight_decay=0.2", "training.micro_batch=2"]
    spec = perennial.open(local.url, changed).spec
    retraining = Retraining(local, spec, player.train)
    assert repair(local, None, retraining=retraining).findings == []
    training = player.jobs[0].training
    assert (training.gradient_clip, training.micro_batch) == (1.0, 2)
    assert training.optimizer_config == perennial.open(local.url).spec.training.optimizer_config


def _lose_its_start(store: Store) -> None:
    for info in store.list("checkpoints/01-code"):
        if not info.key.startswith(END):
            store.remove(info.key)
    store.remove(f"{FIRST_END}/manifest.json")


def _erase(store: Store) -> None:
    """An erasure that the ledger has, which no corpus shows yet."""
    ledger = Ledger(store)
    ledger.read()
    ledger.append(
        Erased(
            at=now(), corpus="code", number=0, whole=False, documents=1, tokens=1,
            digest="0" * 64, tombstone="0" * 64,
        )
    )  # fmt: skip


def _alter_digest(store: Store) -> None:
    def change(manifest: object) -> None:
        assert isinstance(manifest, dict)
        manifest["files"][WEIGHTS]["sha256"] = "0" * 64

    edit(store, f"{END}/manifest.json", change)


REFUSED: dict[str, Callable[[Store], object]] = {
    "retraining-differs": _alter_digest,
    "retraining-without-digests": lambda store: store.remove(f"{END}/manifest.json"),
    "retraining-start-lost": _lose_its_start,
    "retraining-erased-corpus": _erase,
    "retraining-lost-corpus": lambda store: flip(store, SHARD),
}


@pytest.mark.parametrize("code", REFUSED)
def test_what_cannot_be_proved_is_left_as_it_is(store: Store, player: Player, code: str) -> None:
    flip(store, place(END, WEIGHTS))
    REFUSED[code](store)
    before = objects(store)
    done = mend(store, player)
    (its,) = (its for its in done.retrained if its.checkpoint == END)
    assert its.code == code
    assert its.reason
    assert done.findings
    assert objects(store) == before
    assert told(store) == []


def test_a_release_has_weights_of_its_own(local: Store) -> None:
    (key,) = (i.key for i in local.list("branches") if i.key.endswith(WEIGHTS))
    flip(local, key)
    (its,) = mend(local, Player(local, {})).retrained
    assert its.code == "retraining-of-branch"


def test_a_training_that_fails_is_a_reason(local: Store) -> None:
    def fail(_: Job) -> None:
        raise TrainingStopped("the loss is not a number")

    flip(local, place(END, WEIGHTS))
    spec = perennial.open(local.url).spec
    (its,) = repair(local, None, retraining=Retraining(local, spec, fail)).retrained
    assert (its.code, its.reason) == ("training-stopped", "the loss is not a number")


def test_what_a_fork_borrows_is_mended_where_it_is(local: Store, tmp_path: Path) -> None:
    run = perennial.open(local.url)
    url = f"{local.url}-fork"
    new = write_run(tmp_path, tiny_run(tmp_path, url) | {"name": "other"})
    run.fork("01-code", perennial.open(new))
    flip(local, place(END, WEIGHTS))
    (its,) = perennial.open(url).plan_repair(retrain=True).retrained
    assert its.code == "retraining-borrowed"
    assert local.url in its.reason


@pytest.mark.long
def test_killed_before_any_change_a_repetition_completes(
    local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    player = Player(local, objects(local))
    flip(local, place(END, WEIGHTS))
    local.remove(place(END, METRICS))
    whole = objects(local)
    with monkeypatch.context() as counting:
        changes = kill_at(counting, -1)
        mend(local, player)
    assert changes() >= 20
    for number in range(1, changes() + 1):
        for info in local.list():
            local.remove(info.key)
        for key, data in whole.items():
            local.write(key, data)
        with monkeypatch.context() as dying, pytest.raises(Killed):
            kill_at(dying, number)
            mend(local, player)
        assert mend(local, player).findings == []
        assert len(told(local)) == 1


def test_what_another_job_left_there_is_not_gone_on_from(local: Store) -> None:
    player = Player(local, objects(local))
    flip(local, place(END, WEIGHTS))
    left = f"retraining/{END}"
    local.write(f"{left}/plan.json", b"another")
    local.write(f"{left}/00000024/manifest.json", b"{}")
    assert mend(local, player).findings == []


def test_what_a_killed_process_left_is_let_go(local: Store) -> None:
    local.write(f"retraining/{END}/plan.json", b"another")
    local.write(f"starts/retraining/{END}/000000000000.json", b"{}")
    freed = perennial.open(local.url).gc(["staged"])
    assert [its.folder for its in freed.folders] == ["retraining", "starts/retraining"]
    assert not [info.key for info in local.list() if "retraining" in info.key]


def test_the_command_says_what_it_would_train(local: Store) -> None:
    flip(local, place(END, WEIGHTS))
    told = CliRunner().invoke(app, ["repair", local.url])
    assert told.exit_code == 1
    assert f"perennial repair {local.url} --retrain --dry-run" in told.output.replace("\n", " ")
    planned = CliRunner().invoke(app, ["repair", local.url, "--retrain", "--dry-run", "--json"])
    assert planned.exit_code == 1
    (its,) = json.loads(planned.stdout)["retrained"]
    assert (its["checkpoint"], its["steps"], its["code"]) == (END, 2, "")
    read = CliRunner().invoke(app, ["repair", local.url, "--retrain", "--dry-run"])
    assert "to train again" in read.output
    assert open_store(local.url).exists(place(END, WEIGHTS))
