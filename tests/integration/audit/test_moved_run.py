"""A finished run that is moved: to a folder, to a bucket, and killed at every step of the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import perennial
from perennial import corpora
from perennial.audit.verify import verify
from perennial.cli.app import app
from perennial.controller.context import Workspace
from perennial.controller.storage import move as moving
from perennial.errors import InputError
from perennial.runs.events import Retired
from perennial.runs.ledger import MOVING, Ledger, now
from perennial.store import Store, open_store
from tests.integration.audit.test_verify import RELEASE
from tests.support.killed_process import Killed, kill_at
from tests.support.small_ledger import objects
from tests.support.tiny_run import tiny_run, write_run, write_texts


def _do(*words: object, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def _findings(store: Store) -> list[str]:
    return [str(finding) for finding in verify(store).findings]


def _assert_moved(old: Store, new: Store) -> None:
    """Every verb refuses the old place and names the new one, where the run is whole."""
    error = _do("status", old.url, code=2)["error"]
    assert (error["code"], error["where"]) == ("store-moved", old.url)
    assert error["message"].endswith(f"write `store: {new.url}` into the run file")
    assert _findings(new) == []
    assert not new.exists(MOVING)
    mine, its = objects(old), objects(new)
    del mine["leases/head.json"], mine[max(k for k in mine if k.startswith("ledger/"))]
    del its["leases/head.json"]
    assert its == mine, "the last event is not of the copy"
    assert not [key for key, data in its.items() if old.url.encode() in data], "no path"


def test_a_run_goes_on_in_its_new_place_alone(store: Store) -> None:
    new, before = open_store(f"{store.url}-elsewhere"), objects(store)
    todo = _do("move", store.url, new.url, "--dry-run")["todo"]
    assert todo[0].startswith(f"copy {len(before) - 1:,} objects")
    assert (objects(store), new.list()) == (before, [])
    told = _do("move", store.url, new.url)
    assert (told["source"], told["target"], told["inbox"]) == (store.url, new.url, "")
    assert told["objects"] == told["copied"] == len(objects(new)) - 1
    _assert_moved(store, new)
    run = perennial.open(new.url)
    run.retire("help")
    assert Ledger(new).read().corpora["help"].state == "retired"
    again = _do("move", store.url, new.url)
    assert (again["target"], again["copied"]) == (new.url, 0)
    assert Ledger(new).read().corpora["help"].state == "retired"
    assert _do("move", store.url, new.url, "--dry-run")["todo"] == []
    other = _do("move", store.url, f"{store.url}-third", code=2)["error"]
    assert other["code"] == "store-moved"


def test_mlflow_finds_the_releases_in_the_new_place(local: Store) -> None:
    """By links between folders of the store, which no listing of objects has."""
    link, new = Path(local.url, "mlflow/artifacts/0/artifacts/model"), f"{local.url}-new"
    link.parent.mkdir(parents=True)
    link.symlink_to(f"../../../../{RELEASE}", target_is_directory=True)
    perennial.open(local.url).move(new)
    shutil.rmtree(local.url)
    assert Path(new, "mlflow/artifacts/0/artifacts/model/config.json").is_file()


def test_a_run_moves_from_a_folder_into_a_bucket_and_back(local: Store, s3_url: str) -> None:
    bucket, back = open_store(s3_url), open_store(f"{local.url}-back")
    perennial.open(local.url).move(bucket.url)
    _assert_moved(local, bucket)
    perennial.open(bucket.url).move(back.url)
    _assert_moved(bucket, back)
    first = Ledger(local, is_left=True)
    assert first.read().store.moved_to == bucket.url
    moved = Ledger(back)
    assert moved.read().store.moved_to == ""
    assert moved.store_id == first.store_id != ""


def _places_with_a_run(*stores: Store) -> list[Store]:
    there = []
    for store in stores:
        try:
            if Ledger(store).read().spec is not None:
                there.append(store)
        except InputError as refused:
            assert refused.code in ("store-moved", "store-arriving", "ledger-broken")
    return there


def test_killed_before_any_change_the_run_is_in_one_place_and_a_repetition_completes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as counting:
        changes = kill_at(counting, -1)
        perennial.open(store.url).move(f"{store.url}-0")
    assert changes() > 50
    origin = objects(open_store(f"{store.url}-0"))
    for number in [1, 3, changes() // 2, *range(changes() - 6, changes() + 1)]:
        old, new = (open_store(f"{store.url}-{number}-{which}") for which in ("old", "new"))
        for name, data in origin.items():
            old.write(name, data)
        with monkeypatch.context() as dying, pytest.raises(Killed):
            kill_at(dying, number)
            perennial.open(old.url).move(new.url)
        there = _places_with_a_run(old, new)
        assert len(there) <= 1, number
        if there == [new]:
            perennial.open(new.url).retire("help")
        perennial.open(old.url).move(new.url)
        assert _places_with_a_run(old, new) == [new]
        expected = "retired" if there == [new] else "passed"
        assert Ledger(new).read().corpora["help"].state == expected, number
        assert objects(new).keys() >= origin.keys(), number
        assert not new.exists(MOVING)
    assert _findings(new) == []


def test_a_decision_that_is_written_meanwhile_moves_too(
    local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a process that looked for others before this one began."""
    real, new = moving._copy_entries, open_store(f"{local.url}-new")
    other = Ledger(local)

    def meanwhile(*asked: Any) -> Any:
        done = real(*asked)
        if other.read().corpora["code"].state == "passed":
            other.append(Retired(at=now(), corpus="code", reason="late"))
        return done

    monkeypatch.setattr(moving, "_copy_entries", meanwhile)
    perennial.open(local.url).move(new.url)
    assert Ledger(new).read().corpora["code"].state == "retired"
    assert _findings(new) == []


def test_what_lands_until_the_run_leaves_moves_too(
    local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, new = moving._copy_entries, open_store(f"{local.url}-new")

    def meanwhile(*asked: Any) -> Any:
        local.write("inbox/late/_SUCCESS", b"")
        local.remove("inbox/early")
        return real(*asked)

    local.write("inbox/early/_SUCCESS", b"")
    monkeypatch.setattr(moving, "_copy_entries", meanwhile)
    perennial.open(local.url).move(new.url)
    assert new.exists("inbox/late/_SUCCESS")
    assert not new.exists("inbox/early/_SUCCESS"), "it was removed before the run left"


def test_files_that_land_while_the_run_moves_are_not_left_behind_silently(
    local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = perennial.open(write_run(tmp_path, tiny_run(tmp_path, local.url)))
    text = write_texts(tmp_path)["code"]
    real = corpora.land_files

    def meanwhile(*asked: Any) -> Any:
        run.move(f"{local.url}-new")
        return real(*asked)

    monkeypatch.setattr(corpora, "land_files", meanwhile)
    with pytest.raises(InputError) as refused:
        run.land("late", [text])
    assert refused.value.code == "store-moved"


def test_a_run_that_is_at_work_is_not_moved(local: Store) -> None:
    work = Workspace(perennial.open(local.url).spec, local.url)
    work.take_charge()
    before = objects(local)
    error = _do("move", local.url, f"{local.url}-new", code=3)["error"]
    assert error["code"] == "busy"
    assert objects(local) == before
    assert open_store(f"{local.url}-new").list() == []
    work.close()
    assert _do("move", local.url, f"{local.url}-new")["copied"] > 0


@pytest.mark.parametrize("place", ["", "/inside", "/..", "-full", "-other"])
def test_a_place_that_cannot_be_used_is_refused(local: Store, place: str) -> None:
    open_store(f"{local.url}-full").write("notes.txt", b"a user's")
    open_store(f"{local.url}-other").write(MOVING, b'{"id": "another"}')
    before = objects(local)
    error = _do("move", local.url, f"{local.url}{place}", code=2)["error"]
    overlaps = place in ("", "/inside", "/..")
    assert error["code"] == ("place-overlaps" if overlaps else "place-not-empty")
    assert objects(local) == before


def test_there_must_be_a_run(tmp_path: Path) -> None:
    error = _do("move", tmp_path / "none", tmp_path / "new", code=2)["error"]
    assert error["code"] == "no-run-in-store"
    assert not (tmp_path / "none").exists()


def test_nothing_is_begun_in_a_store_that_is_still_arriving(local: Store) -> None:
    arriving = open_store(f"{local.url}-new")
    arriving.write(MOVING, b'{"id": "x"}')
    with pytest.raises(InputError) as refused:
        Ledger(arriving).read()
    assert refused.value.code == "store-arriving"
