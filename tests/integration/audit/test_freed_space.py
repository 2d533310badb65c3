"""Space of a finished run that nothing needs is freed, in a folder and a bucket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import perennial
from perennial.audit.verify import verify
from perennial.cli.app import app
from perennial.controller.context import Workspace
from perennial.runs.ledger import Ledger
from perennial.store import Store
from tests.integration.audit.test_verify import RELEASE
from tests.support.killed_process import Killed, kill_at
from tests.support.small_ledger import objects
from tests.support.tiny_run import tiny_run, write_run

BRANCH = RELEASE.replace("releases", "branches")
STAGED = "corpora/help/staging-0123456789abcdef"


def _do(*words: object, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def _findings(store: Store) -> list[str]:
    return [str(finding) for finding in verify(store).findings]


def _leave_more(store: Store) -> Store:
    """What a killed ingest staged, and measurements of a model that is no longer one."""
    store.write(f"{STAGED}/piece", b"text")
    store.write("evaluations/checkpoints/09-gone/00000001/help.parquet", b"losses")
    store.write("evaluations/checkpoints/01-code/00000024/help.parquet", b"losses")
    return store


def test_only_what_nothing_needs_is_freed(store: Store) -> None:
    before = objects(_leave_more(store))
    todo = _do("gc", store.url, "--dry-run")["todo"]
    assert objects(store) == before
    freed = _do("gc", store.url)
    assert [its["folder"] for its in freed["folders"]] == [
        BRANCH, STAGED, "evaluations/checkpoints/09-gone/00000001",
    ]  # fmt: skip
    assert len(todo) == 3
    after = objects(store)
    gone = before.keys() - after.keys()
    its = (BRANCH, STAGED, "evaluations/checkpoints/09-gone")
    assert gone == {key for key in before if key.startswith(its)}
    assert freed["size_bytes"] == sum(len(before[key]) for key in gone)
    assert _findings(store) == []
    assert _do("gc", store.url)["folders"] == []
    status = _do("status", store.url, "--bytes")
    assert status["bytes"]["checkpoints"] == sum(
        len(data) for key, data in after.items() if key.startswith("checkpoints/")
    )
    assert "branches" not in status["bytes"]


def test_a_stage_that_left_the_trunk_is_freed_where_it_is_asked_for(local: Store) -> None:
    run = perennial.open(local.url)
    assert run.gc(["left"]).folders == ()
    run.rewind("01-code@17")
    assert run.gc(["left"]).folders == (), "its plan goes on from there"
    run.refuse("code")
    (freed,) = run.gc(["left"]).folders
    assert (freed.kind, freed.folder) == ("left", "checkpoints/01-code")
    assert local.list("checkpoints/01-code") == []
    assert _findings(local) == []


def test_what_a_fork_borrows_stays(local: Store, tmp_path: Path) -> None:
    run = perennial.open(local.url)
    new = write_run(tmp_path, tiny_run(tmp_path, f"{local.url}-fork") | {"name": "other"})
    run.fork("01-code", perennial.open(new))
    run.rewind("00-help")
    run.refuse("code")
    assert run.gc(["left"]).folders == ()
    assert "checkpoints/01-code/00000024" in run.plan_gc().pinned


def test_killed_before_any_change_a_repetition_completes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = objects(_leave_more(store))
    with monkeypatch.context() as counting:
        changes = kill_at(counting, -1)
        perennial.open(store.url).gc()
    assert changes() >= 5
    expected = objects(store).keys()
    for number in range(1, changes() + 1):
        store.remove("ledger")
        for key, data in whole.items():
            store.write(key, data)
        with monkeypatch.context() as dying, pytest.raises(Killed):
            kill_at(dying, number)
            perennial.open(store.url).gc()
        assert _findings(store) == []
        perennial.open(store.url).gc()
        assert objects(store).keys() == expected
        assert _findings(store) == []
        state = Ledger(store).read()
        assert state.store.is_absent(BRANCH)


def test_a_run_that_is_at_work_is_left_alone(local: Store) -> None:
    work = Workspace(perennial.open(local.url).spec, local.url)
    work.take_charge()
    before = objects(local)
    assert _do("gc", local.url, code=3)["error"]["code"] == "busy"
    assert objects(local) == before
    work.close()


def test_an_unknown_kind_is_refused(local: Store) -> None:
    error = _do("gc", local.url, "--kind", "corpora", code=2)["error"]
    assert (error["code"], error["field"]) == ("kind-unknown", "--kind")
