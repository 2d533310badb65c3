"""A release of a finished run gets an alias, in a folder and a bucket, and in MLflow's registry."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

import perennial
from perennial.audit.verify import verify
from perennial.cli.app import app
from perennial.controller.context import Workspace
from perennial.controller.promote import promote
from perennial.runs.ledger import Ledger, now
from perennial.runs.release_policy import alias_key, decide_promotion
from perennial.store import Store
from perennial.tracking import default_uri
from tests.integration.audit.test_verify import RELEASE, edit, event_key
from tests.support.small_ledger import objects

NAME = RELEASE.removeprefix("releases/")


def _findings(store: Store) -> list[str]:
    return [str(finding) for finding in verify(store).findings]


def _work(store: Store) -> Workspace:
    work = Workspace(perennial.open(store.url).spec, store.url)
    work.check_run()
    return work


def test_an_alias_is_an_event_and_an_object_that_a_repetition_completes(store: Store) -> None:
    work, key = _work(store), alias_key("production")
    event = decide_promotion(work.state, NAME, "production", "", now())
    assert event is not None
    work.amend(event)
    # Killed here: the ledger has it, and what deployments read does not.
    assert any(line.startswith(f"{key}: is missing") for line in _findings(store))
    before = work.ledger.next
    done = promote(_work(store), NAME, "production")
    assert (done.release, done.folder, done.moved) == (NAME, RELEASE, False)
    assert json.loads(store.read(key)) == {
        "alias": "production", "release": NAME, "folder": RELEASE,
    }  # fmt: skip
    ledger = Ledger(store)
    assert ledger.read().aliases == {"production": [NAME]}
    assert ledger.next == before, "one event"
    assert _findings(store) == []
    store.write(key, b"{}")
    assert any("says something else than the ledger" in line for line in _findings(store))


def test_a_release_of_a_stage_that_broke_its_gates_is_found_and_refused(local: Store) -> None:
    def broken(event: Any) -> None:
        verdict = {"gate": "max_adaptation", "subject": "code", "value": 9.0, "stderr": None}
        event["verdicts"] = [verdict | {"bound": 6.0, "holds": False}]

    promote(_work(local), NAME, "production")
    edit(local, event_key(local, "passed", "code"), broken)
    local.remove("leases/head.json")
    assert any("max_adaptation of code" in line for line in _findings(local))
    before = objects(local)
    done = CliRunner().invoke(app, ["promote", local.url, NAME, "canary", "--json"])
    assert (done.exit_code, json.loads(done.stdout)["error"]["code"]) == (2, "gates-not-held")
    assert objects(local) == before


@pytest.mark.long
def test_the_alias_moves_in_mlflows_registry(local: Store, monkeypatch: Any) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    perennial.open(local.url).prepare_tracking()
    before = objects(local)
    dry = CliRunner().invoke(app, ["promote", local.url, NAME, "production", "--dry-run"])
    assert json.loads(dry.stdout)["todo"] == [f"point production to {NAME}"]
    assert objects(local) == before
    done = CliRunner().invoke(app, ["promote", local.url, NAME, "production", "--json"])
    assert done.exit_code == 0, done.output
    assert (json.loads(done.stdout)["moved"], json.loads(done.stdout)["missing"]) == (True, [])
    from mlflow.tracking import MlflowClient

    client = MlflowClient(default_uri(local))
    version = client.get_model_version_by_alias("tiny", "production")
    assert version.tags["perennial.release"] == NAME
    assert _findings(local) == []
