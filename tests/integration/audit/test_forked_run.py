"""A finished run that is forked, in a folder and a bucket: what it borrows stays where it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import perennial
from perennial import corpora
from perennial.api.run import Run
from perennial.audit.verify import verify
from perennial.cli.app import app
from perennial.controller.context import Workspace
from perennial.errors import Busy, InputError
from perennial.mixture.row_reader import RowReader
from perennial.runs.job_factory import layout, stage_job
from perennial.runs.lease import hold_alone
from perennial.runs.ledger import MOVING, Ledger, now
from perennial.store import Store, open_run_store, open_store
from perennial.store.borrowing import read_pins
from perennial.training.checkpoint.manifest import committed_steps
from perennial.training.checkpoint.reader import check_latest
from tests.support.killed_process import Killed, kill_at
from tests.support.small_ledger import objects
from tests.support.tiny_run import tiny_run, write_run

LARGE = ("corpora/", "checkpoints/", "branches/", "releases/", "models/")


def _do(*words: object, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def _findings(store: Store) -> list[str]:
    return [str(finding) for finding in verify(open_run_store(store.url)).findings]


def _new_file(folder: Path, store: str, **fields: Any) -> Path:
    folder.mkdir(exist_ok=True)
    return write_run(folder, tiny_run(folder, store) | {"name": "other"} | fields)


def _fork(store: Store, at: str, folder: Path, place: str | None = None) -> Run:
    run_file = _new_file(folder, place or f"{store.url}-fork")
    new = perennial.open(run_file)
    perennial.open(store.url).fork(at, new)
    return new


def test_a_run_begins_where_another_one_stands_and_copies_nothing_large(
    store: Store, tmp_path: Path
) -> None:
    run_file, before = _new_file(tmp_path / "new", f"{store.url}-fork"), objects(store)
    todo = _do("fork", store.url, "01-code", run_file, "--dry-run")["todo"]
    assert todo[0] == f"begin a run in {store.url}-fork at 01-code@24"
    assert objects(store) == before
    told = _do("fork", store.url, "01-code", run_file)
    assert (told["corpora"], told["held"], told["goes_on"]) == (["help", "code"], [], [])
    own = open_store(f"{store.url}-fork")
    assert not [key for key in objects(own) if key.startswith(LARGE)]
    assert objects(store).keys() - before.keys() == {info.key for info in store.list("pins")}
    assert _findings(own) == _findings(store) == []
    status = _do("status", run_file)
    assert status["corpora"] == {"help": "passed", "code": "passed"}
    assert (status["releases"], status["trunk"]["stage"]) == ([], "01-code")
    _do("retire", run_file, "help")
    assert Ledger(store).read().corpora["help"].state == "passed", "it has a ledger of its own"
    again = _do("fork", store.url, "01-code", run_file)
    assert again["borrowed"] == told["borrowed"]
    assert Ledger(own).read().corpora["help"].state == "retired", "it goes on as it is"
    assert _findings(own) == []


def test_workers_read_the_rows_and_the_checkpoint_that_are_borrowed(
    store: Store, tmp_path: Path
) -> None:
    new = _fork(store, "00-help", tmp_path / "new")
    borrowing = open_run_store(new.spec.store)
    manifest = corpora.read_manifest(borrowing, "help")
    layouts = {"help": layout(manifest)}
    wanted = [("help", np.arange(3, dtype=np.int64))]
    borrowed, lent = (RowReader(its, layouts, 256).read(wanted) for its in (borrowing, store))
    assert np.array_equal(borrowed, lent)
    assert committed_steps(borrowing, "checkpoints/00-help") == [12]
    assert committed_steps(borrowing, "checkpoints/01-code") == []
    with pytest.raises(PermissionError):
        borrowing.write("corpora/help/manifest.json", b"{}")
    borrowing.remove("corpora/help")
    assert borrowing.exists("corpora/help/manifest.json")


def test_what_came_behind_the_checkpoint_is_the_other_runs_alone(
    local: Store, tmp_path: Path
) -> None:
    new = _fork(local, "00-help", tmp_path / "new")
    state = Ledger(open_store(new.spec.store)).read()
    assert (list(state.corpora), [s.name for s in state.stages]) == (["help"], ["00-help"])
    assert (state.releases, state.abandoned) == ([], [])
    assert state.spec is not None
    assert state.spec["name"] == "other"
    assert _findings(open_store(new.spec.store)) == []


def test_a_stage_goes_on_from_its_middle(local: Store, tmp_path: Path) -> None:
    run_file = _new_file(tmp_path / "new", f"{local.url}-fork")
    told = _do("fork", local.url, "01-code@17", run_file)
    assert told["goes_on"] == ["code"]
    work = Workspace(perennial.open(run_file).spec, str(run_file))
    work.take_charge()
    stage = work.state.at_work
    assert stage is not None
    job = stage_job(work.spec, work.state, stage, work.manifests())
    assert committed_steps(work.store, stage.folder) == [17]
    check_latest(job, work.store)
    work.close()
    assert _findings(open_store(f"{local.url}-fork")) == []


def test_a_stage_that_left_the_trunk_goes_on_in_a_fork(local: Store, tmp_path: Path) -> None:
    perennial.open(local.url).rewind("00-help")
    new = _fork(local, "01-code", tmp_path / "new")
    state = Ledger(open_store(new.spec.store)).read()
    assert [stage.name for stage in state.stages] == ["00-help", "01-code"]
    assert _findings(open_store(new.spec.store)) == []


def test_killed_before_any_change_a_repetition_completes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as counting:
        changes = kill_at(counting, -1)
        _fork(store, "00-help", tmp_path / "counted", f"{store.url}-counted")
    whole = objects(open_store(f"{store.url}-counted")).keys()
    last = changes()
    numbers = sorted({*range(1, last, 3), last - 2, last - 1, last})
    for number in numbers:
        place = open_store(f"{store.url}-{number}")
        with monkeypatch.context() as dying, pytest.raises(Killed):
            kill_at(dying, number)
            _fork(store, "00-help", tmp_path / str(number), place.url)
        try:
            assert Ledger(place).read().spec is None or place.exists(MOVING)
        except InputError as refused:
            assert refused.code == "store-arriving"
        _fork(store, "00-help", tmp_path / str(number), place.url)
        assert objects(place).keys() == whole, number
        assert Ledger(place).read().store.left_at == ("00-help", 12)
    assert _findings(place) == []
    assert len(read_pins(store)) == len(numbers) + 1, "one for each fork"


def test_a_fork_of_a_fork_borrows_from_the_first(local: Store, tmp_path: Path) -> None:
    first = _fork(local, "01-code", tmp_path / "first", f"{local.url}-1")
    run_file = write_run(tmp_path, tiny_run(tmp_path, f"{local.url}-2") | {"name": "third"})
    first.fork("00-help", perennial.open(run_file))
    assert open_store(first.spec.store).list("pins") == []
    assert len(read_pins(local)) == 2
    assert _findings(open_store(f"{local.url}-2")) == []


def test_copies_of_both_work_by_themselves(local: Store, tmp_path: Path) -> None:
    _fork(local, "01-code", tmp_path / "new")
    copied = tmp_path / "elsewhere"
    for url in (local.url, f"{local.url}-fork"):
        shutil.copytree(url, copied / Path(url).name)
        shutil.rmtree(url)
    assert _findings(open_store(copied / "store-fork")) == []


def test_forks_and_lenders_follow_each_other_when_they_move(store: Store, tmp_path: Path) -> None:
    _fork(store, "01-code", tmp_path / "new")
    lender = open_store(f"{store.url}-moved")
    perennial.open(store.url).move(lender.url)
    for key in ("corpora", "checkpoints", "pins", "ledger"):
        store.remove(key)
    assert _findings(open_store(f"{store.url}-fork")) == []
    perennial.open(f"{store.url}-fork").move(f"{store.url}-fork-moved")
    assert _findings(open_store(f"{store.url}-fork-moved")) == []
    (pin,) = read_pins(lender)
    assert pin.place.endswith("-fork-moved")


def test_a_lender_that_is_gone_is_named(local: Store, tmp_path: Path) -> None:
    new = _fork(local, "01-code", tmp_path / "new")
    shutil.move(local.url, f"{local.url}-by-hand")
    error = _do("status", new.where, code=2)["error"]
    assert (error["code"], error["field"]) == ("lender-missing", "borrowed.json")
    perennial.open(f"{local.url}-by-hand").fork("01-code", new)
    assert _findings(open_store(new.spec.store)) == []


def test_a_fork_waits_for_who_has_the_store_alone(local: Store, tmp_path: Path) -> None:
    new = perennial.open(_new_file(tmp_path / "new", f"{local.url}-fork"))
    with hold_alone(local, "gc", now()), pytest.raises(Busy):
        perennial.open(local.url).fork("01-code", new)
    perennial.open(local.url).fork("01-code", new)


@pytest.mark.parametrize(
    ("at", "fields", "code"),
    [
        ("02-none", {}, "stage-missing"),
        ("01-code@18", {}, "checkpoint-missing"),
        ("01-code", {"name": "tiny"}, "fork-same-name"),
        ("01-code", {"seed": 4}, "run-changed"),
        ("01-code", {"store": "{}"}, "place-overlaps"),
        ("01-code", {"store": "{}-full"}, "place-not-empty"),
        ("01-code", {"store": "s3://bucket/fork"}, "fork-from-folder"),
    ],
)
def test_a_fork_that_cannot_be_is_refused(
    local: Store, tmp_path: Path, at: str, fields: dict[str, Any], code: str
) -> None:
    open_store(f"{local.url}-full").write("notes.txt", b"a user's")
    place = fields.pop("store", "{}-fork").format(local.url)
    run_file, before = _new_file(tmp_path / "new", place, **fields), objects(local)
    assert _do("fork", local.url, at, run_file, code=2)["error"]["code"] == code
    assert objects(local) == before


def test_a_new_run_is_named_by_its_file(local: Store) -> None:
    error = _do("fork", local.url, "01-code", f"{local.url}-fork", code=2)["error"]
    assert (error["code"], error["field"]) == ("run-file-needed", "NEW_RUN")
